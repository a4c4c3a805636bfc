"""Tables, files and sentences made from results: the numbers are right, and nothing a visitor named can run."""

from __future__ import annotations

import base64
import csv
import io
import json
import re

import numpy as np
import pytest
from dashboard.fake_lab import TASKS, FakeBench, FakeEvaluation
from PIL import Image

from mergelab.dashboard import model_views, pictures, selections, views
from mergelab.errors import MergeLabError


def result(label="Task arithmetic λ=0.3", values=(0.6, 0.5, 0.4, 0.3), per_task=40, **more):
    references = FakeBench().references(per_task)
    return {
        "id": label, "label": label, "evaluation": FakeEvaluation(list(values), per_task, "merged").to_dict(),
        "base": references["base"].to_dict(), "experts": references["experts"].to_dict(), "titles": dict(TASKS),
        "per_task": per_task, "tuned": False, "seconds": 1.5, "hash": "0" * 64, **more,
    }  # fmt: skip


def linked(text: str, label: str) -> str:
    found = re.search(rf'href="data:text/csv;base64,([^"]+)">{label}<', text)
    return base64.b64decode(found[1]).decode()


def test_main_table_shows_absolute_and_normalised_beside_base_and_expert():
    text = re.sub(r"<[^>]+>", " ", views.main_table(result()))
    row = text[text.index("MNIST") :].split()
    assert row[:6] == ["MNIST", "20.0", "90.0", "60.0", "50–70", "0.67"]
    assert "40 test images a task" in text
    assert text.index("Mean, seen") > text.index("Shapes")


def test_csv_has_every_number():
    rows = list(csv.DictReader(io.StringIO(linked(views.main_table(result()), "Numbers as CSV"))))
    merged = [row for row in rows if row["series"] == "merged"]
    assert [float(row["accuracy"]) for row in merged] == [0.6, 0.5, 0.4, 0.3]
    assert float(merged[0]["low"]) == pytest.approx(0.5)


def test_csv_cells_cannot_be_formulas():
    assert "'=1+1" in views.to_csv(["a"], [["=1+1"]])


def test_unseen_tasks_are_marked_and_averaged_apart():
    text = views.main_table(result(per_task=None))
    assert "unseen" in text and "Mean, unseen" in text and "whole test sets" in text


def test_model_table_says_what_was_used_and_what_it_cost():
    other = result("A: TIES", per_task=None, tuned=True)
    lines = views.model_table(result(), [other])
    assert [line[0] for line in lines] == ["base", "experts", "merged: Task arithmetic λ=0.3", "A: TIES"]
    assert lines[2][1] == 45.0 and lines[2][4] == "40" and lines[2][5] == "untuned" and lines[2][7] == 1.5
    assert lines[3][3] == 33.0 and lines[3][4] == "all" and lines[3][5] == "tuned on validation"


def test_every_line_has_a_cell_for_every_heading():
    assert {len(line) for line in views.model_table(result())} == {len(views.MODEL_HEAD)}
    assert {len(line) for line in views.task_table(result(), [result("A: x")])} == {len(views.TASK_HEAD)}


def test_plots_are_named_for_their_png():
    data = json.loads(views.radar(result()).plot)
    assert data["config"]["toImageButtonOptions"]["filename"] == "mergelab-radar"
    assert [trace["name"] for trace in data["data"]] == ["base", "experts", "merged"]


def test_without_experts_bars_take_the_radars_place():
    plain = result(base=None, experts=None)
    for task in plain["evaluation"]["tasks"].values():
        task["normalised"] = None
    assert {trace["type"] for trace in json.loads(views.radar(plain).plot)["data"]} == {"bar"}


@pytest.mark.parametrize("evil", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>'])
def test_names_are_escaped_everywhere(evil):
    bad = result(label=evil)
    bad["titles"]["mnist"] = evil
    prediction = {"task": "mnist", "title": evil, "truth": evil, "png": "data:,",
                  "rows": [{"series": "base", "role": "base", "class": evil, "probability": 1.0}]}  # fmt: skip
    shown = [
        views.main_table(bad), views.result_status(bad), views.prediction_table(prediction),
        views.picture_card(prediction), views.status(evil, "error"), views.note(evil),
        model_views.findings({"ok": False, "findings": [{"level": "error", "text": evil, "fix": evil}]}),
        model_views.basket_list([{"repo": evil, "source": evil}]),
    ]  # fmt: skip
    for text in shown:
        assert "<script" not in text and "<img src=x" not in text


def test_prediction_table_ranks_each_model_by_its_own_probabilities():
    rows = views.prediction_rows(FakeBench().predict(None, "mnist", np.full((1, 32, 32, 3), 40, np.uint8)))
    text = re.sub(r"<[^>]+>", " ", views.prediction_table({"title": "MNIST", "truth": "gamma", "rows": rows}))
    first = text[text.index("Merged") :].split()
    assert first[1:4] == ["1", "alpha", "16.7%"] and "gamma ✓" in text and "100.0%" in text


def test_status_says_the_subset_and_whether_it_was_tuned():
    text = views.result_status(result())
    assert "on 40 test images a task" in text and "untuned" in text and 'role="status"' in text
    assert 'role="alert"' in views.status("No.", "error")


def drawing(layer: np.ndarray) -> str:
    out = io.BytesIO()
    Image.fromarray(layer).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def test_a_drawing_becomes_ink_on_a_plain_ground():
    layer = np.zeros((8, 8, 4), np.uint8)
    layer[2, 3] = (255, 255, 255, 255)
    white = pictures.flatten(drawing(layer), "white on black")
    assert white.shape == (8, 8, 3) and white[2, 3].tolist() == [255] * 3 and white[0, 0].tolist() == [0] * 3
    assert pictures.flatten(drawing(layer), "black on white")[2, 3].tolist() == [0] * 3
    with pytest.raises(MergeLabError, match="empty"):
        pictures.flatten(drawing(np.zeros((8, 8, 4), np.uint8)), "white on black")
    for broken in ("", "data:image/png;base64,AAAA", "nonsense", None):
        with pytest.raises(MergeLabError, match="drawing"):
            pictures.flatten(broken, "white on black")


def test_local_selections_are_refused_on_a_public_page():
    with pytest.raises(MergeLabError, match="public"):
        selections.local_selection("/base", "/a", "", public=True)
    found = selections.local_selection("/base", "/models/a\nmine = /models/b\n", "", public=False)
    assert found["experts"] == {"a": "/models/a", "mine": "/models/b"}
    with pytest.raises(MergeLabError, match="Two experts"):
        selections.local_selection("/base", "/models/a\n/other/a", "", public=False)


def test_models_without_a_suite_say_so_and_promise_no_numbers():
    bare = result(evaluation=None, base=None, experts=None)
    assert "merged in memory" in views.result_status(bare) and "no suite" in views.sentence(bare)
    assert views.main_table(bare) == "" and json.loads(views.radar(bare).plot)["layout"]["annotations"][0]["text"]


def test_findings_have_words_not_only_colours():
    text = model_views.findings(
        {"ok": False, "findings": [{"level": "error", "text": "Shape differs.", "fix": "Take another."}]}
    )
    assert "cannot run" in text and "Take another." in text
