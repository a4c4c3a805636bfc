"""Curves of training runs: the numbers that go in are drawn, labels keep apart, sentences say what is there."""

from __future__ import annotations

import itertools

import pytest

from mergelab import figures
from mergelab.figures.training import spread


def rows(series: str, role: str, task: str | None, values: list[float]) -> list[dict]:
    return [{"series": series, "role": role, "task": task, "epochs": float(k), "accuracy": value}
            for k, value in enumerate(values)]  # fmt: skip


ROWS = [
    *rows("ATM", "merged", None, [0.2, 0.6, 0.7]), *rows("ATM", "merged", "Digits", [0.1, 0.8, 0.9]),
    *rows("joint training", "kept", None, [0.2, 0.65, 0.7]),
]  # fmt: skip
LEVELS = [
    {"series": "experts", "role": "experts", "accuracy": 0.9},
    {"series": "base", "role": "base", "accuracy": 0.2},
]
POINTS = [{"series": "1× TIES", "epochs": 1.0, "accuracy": 0.5}, {"series": "1× mean", "epochs": 1.0,
                                                                   "accuracy": 0.4, "open": True}]  # fmt: skip


def drawn(**more) -> dict:
    data = figures.training_curves(ROWS, levels=LEVELS, points=POINTS, **more).to_dict()
    return {"traces": {trace["name"]: trace for trace in data["data"]}, "layout": data["layout"]}


def test_means_are_bold_tasks_thin_and_levels_dashed_and_dotted():
    found = drawn(until=10)["traces"]
    assert list(found["ATM"]["y"]) == [0.2, 0.6, 0.7] and list(found["ATM, Digits"]["y"]) == [0.1, 0.8, 0.9]
    assert found["ATM"]["line"]["width"] > 2 * found["ATM, Digits"]["line"]["width"]
    assert found["ATM, Digits"]["showlegend"] is False
    assert found["experts"]["line"]["dash"] == "dash" and found["base"]["line"]["dash"] == "dot"
    assert list(found["experts"]["x"]) == [0, 10], "a level reaches to the end that is to come"
    assert found["ATM"]["line"]["dash"] != found["joint training"]["line"]["dash"], "never by colour alone"


def test_merges_are_points_and_the_untuned_hollow():
    found = drawn()["traces"]
    tuned, plain = found["1× TIES"]["marker"]["symbol"], found["1× mean"]["marker"]["symbol"]
    assert found["1× TIES"]["mode"] == "markers" and plain.endswith("-open") and not tuned.endswith("-open")
    assert tuned != plain.removesuffix("-open")


def test_what_is_shown_is_marked_and_tasks_are_named_at_their_end():
    layout = drawn(shown=1.0)["layout"]
    assert layout["shapes"][0]["x0"] == 1.0
    assert [a["text"] for a in layout["annotations"]] == ["Digits"]
    assert "No" not in str(layout.get("annotations")) and "starts" in str(figures.training_curves([]).to_dict())


def test_labels_that_would_lie_on_each_other_move_apart():
    found = spread([("a", 0.5, 1), ("b", 0.51, 2), ("c", 0.52, 3), ("d", 0.9, 4)], 0.05)
    heights = [y for _, y, _ in found]
    assert [name for name, _, _ in found] == ["a", "b", "c", "d"] and heights[3] == 0.9
    assert all(b - a >= 0.05 - 1e-9 for a, b in itertools.pairwise(heights))
    assert sum(heights[:3]) / 3 == pytest.approx(0.51), "they stay around where they belong"


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        (0.0, "Before the first round: 20.0% of the pictures"),
        (1.0, "After 1 epoch a task, ATM: 60.0% right on average, 67% of what the experts do; it started from 20.0%. "
         "Joint training: 65.0%, 5.0 points more, after as many pictures. The best merge that is made once: 50.0% (1× "
         "TIES)."),
        (2.0, "Joint training: 70.0%, as much, after"), (7.0, "Before the first round"),
    ],
)  # fmt: skip
def test_the_sentence_says_what_is_there(shown, words):
    assert words in figures.describe_training(ROWS, shown=shown, experts=0.9, points=POINTS)
    assert figures.describe_training([], shown=shown) == ""
