"""Calibrated features on the Merge tab: what is shown follows from what was found; programs get the same numbers."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
from dashboard.fake_data import NAME, FakeData
from dashboard.fake_lab import TASKS, FakeBench

from mergelab.dashboard import after_merge, calibrating, calibrating_views, drafts, recipes
from mergelab.dashboard.jobs import Done, Jobs
from mergelab.dashboard.lab import Lab
from mergelab.dashboard.page import Page
from mergelab.dashboard.settings import Settings
from mergelab.errors import MergeLabError, StatisticsError
from mergelab.recipe import Recipe

SELECTION = {
    "title": "Starter", "zoo": "starter", "base": "zoo:starter/base", "suite": "starter",
    "experts": {name: f"zoo:starter/{name}" for name in TASKS}, "tuned": {},
}  # fmt: skip
METHODS = Lab(Settings()).methods()
RECIPE = Recipe("task_arithmetic", tuple(SELECTION["experts"].values())[:2], base_model="zoo:starter/base",
                suite="starter", parameters={"lambda": 0.3})  # fmt: skip
VALUES = {"ridge": 0.05, "anchor": 2.2, "teacher": 0.25}


def plain(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text))


@pytest.fixture
def page():
    data = FakeData(FakeBench())
    blank = dict.fromkeys(("selection", "form", "draft", "data_draft", "result", "kept", "picture", "prediction"))
    return Page(SimpleNamespace(data=lambda _selection: data), Settings(), METHODS, **blank)


def found(recipe: Recipe = RECIPE, **more) -> dict:
    made = FakeData(FakeBench()).calibrate(recipe, examples=20, **{**VALUES, **more})
    return {**made, "titles": TASKS, "yaml": recipe.to_yaml(), "shell": recipes.merging(recipe)}


def test_numbers_before_and_after_with_their_means():
    text, bars, table, *_ = calibrating_views.found_view(found())
    assert text == (
        "On average 60.0% before and 67.5% after; of 2 tasks 1 went up and 1 went down. MNIST gains most (+20.0 "
        "points). Fashion loses most (-5.0 points)."
    )
    drawn = json.loads(bars.plot)["data"]
    assert [(trace["name"], trace["y"]) for trace in drawn] == [("merged", [0.6, 0.6]), ("calibrated", [0.8, 0.55])]
    assert drawn[1]["error_y"]["array"] == pytest.approx([0.1, 0.1])
    rows = plain(table)
    assert "MNIST 60.0 80.0 +20.0" in rows and "Fashion 60.0 55.0 -5.0" in rows and "Mean 60.0 67.5 +7.5" in rows
    assert "on 40 test images a task" in rows and "Numbers as CSV" in rows


def test_what_was_fitted_and_what_was_not():
    *_, fitted, skipped, shell, files = calibrating_views.found_view(found())
    assert "2 tensors of 2 blocks" in fitted and "by 20% of their length on average" in fitted
    assert "most of all layer.1.fc.weight (30%)" in fitted and "ridge 0.05, anchor 2.2, teacher 0.25" in fitted
    assert "fused &lt;attention&gt; 1 layer.0.in_proj" in plain(skipped) and "<attention>" not in skipped
    assert shell.endswith("merge recipe.yaml --out merged") and "recipe.yaml" in files
    assert "No layer" in calibrating_views.skipped_table({})
    assert "Nothing was fitted" in calibrating_views.fitted_text({**found(), "tensors": {}})


def test_test_images_and_the_merges_own_data_are_marked():
    assert "transductive" not in calibrating_views.fitted_text(found())
    marked = calibrating_views.fitted_text(found(split="test"))
    assert "(transductive: the split that results are measured on)" in marked
    assert "transductive" in calibrating_views.lead(transductive=True)
    assert "needs unlabelled images" in calibrating_views.lead() and "transductive" not in calibrating_views.lead()
    own = RECIPE.replace(merge_method="mats", parameters={"iterations": 5}, statistics=NAME)
    assert "The merge itself: 10 labelled val images a task" in calibrating_views.fitted_text(found(own))


def test_the_cost_is_said_in_pictures_blocks_and_seconds():
    cost = FakeData(FakeBench()).calibration_cost(RECIPE, examples=20)
    text = plain(calibrating_views.cost_line(cost))
    assert "2 tasks, 40 images in all" in text and "2 blocks: about 4 s (from 32 images timed here)" in text


def test_values_are_numbers_in_their_ranges():
    assert calibrating.settings_of(1, 0, 0.5) == {"ridge": 1.0, "anchor": 0.0, "teacher": 0.5}
    for bad in ("x", None, True, float("nan"), float("inf")):
        with pytest.raises(MergeLabError, match="anchor must be a number"):
            calibrating.settings_of(0.05, bad, 0.25)
    with pytest.raises(StatisticsError, match="'teacher' of a feature calibration is 2"):
        found(teacher=2.0)


def test_a_failure_is_a_sentence_and_a_merge_that_moved_on_is_said(page):
    def refuse():
        raise MergeLabError("Give 10 to 1000 examples a task, not 5.")

    request = SimpleNamespace(session_hash="x")
    page.jobs = Jobs()
    (only,) = after_merge.follow(page, request, refuse, lambda item: [item.value], what="Calibrating:", others=2)
    assert "not 5" in only[0] and 'role="alert"' in only[0] and len(only) == 3
    last = list(after_merge.follow(page, request, lambda: lambda progress, stop: 7, _shown, what="", others=2))[-1]
    assert last == [7, 1, 2]
    draft = drafts.fresh(METHODS["task_arithmetic"], SELECTION)
    stale = after_merge.staleness(page, "The merge has changed since")
    same = {"hash": page.recipe(draft, SELECTION).hash}
    assert "changed since" in stale({"hash": "other"}, draft, SELECTION)
    for kept in (None, same):
        assert "changed since" not in str(stale(kept, draft, SELECTION))


def _shown(item: Done) -> list:
    return [item.value, 1, 2]


# ---- on a live page -------------------------------------------------------------------------------------------------


def refused(client, *args) -> str:
    with pytest.raises(Exception) as caught:
        client.predict(*args, api_name="/calibrate")
    assert "Traceback" not in str(caught.value)
    return str(caught.value)


def test_calibrate_for_programs(client, lab):
    made = client.predict(RECIPE.to_yaml(), 20, "test", api_name="/calibrate")
    assert made["settings"] == VALUES and made["transductive"] and made["hash"] == RECIPE.hash
    assert made["accuracy"]["mnist"]["after"] == 0.8 and made["skipped"] == {"layer.0.in_proj": "fused <attention>"}
    assert lab.data_bench.calls[-1] == "calibrate"
    for arguments, word in (((5, "val"), "10 to 1000"), ((20, "train"), "split"), ((20, "val", -1), "'ridge'"),
                            ((20, "val", 0.05, 11), "'anchor'"), ((20, "val", 0.05, 1, 2), "'teacher'")):  # fmt: skip
        assert word in refused(client, RECIPE.to_yaml(), *arguments)


def test_the_controls_have_the_usual_values_and_a_word_of_help(demo):
    by_id = {c["props"].get("elem_id"): c["props"] for c in demo.config["components"]}
    for name, value in VALUES.items():
        shown = by_id[f"calibration-{name}"]
        assert shown["value"] == value and len(shown["info"].split()) > 5
    assert (by_id["calibration-examples"]["minimum"], by_id["calibration-examples"]["maximum"]) == (10, 1000)
    assert by_id["calibration"]["open"] is False and "needs unlabelled images" in by_id["calibration-lead"]["value"]
