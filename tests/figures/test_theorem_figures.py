"""Figures of the theorem lab: the rows that go in are drawn, sentences say what is there."""

from __future__ import annotations

import pytest

from mergelab import figures
from mergelab.figures.palette import style


def row(optimiser: str, steps: int, error: float, cosine: float, accuracy: dict[str, float] | None) -> dict:
    return {
        "optimiser": optimiser, "steps": steps, "error": {"mnist": error / 2}, "cosine": {"mnist": cosine / 2},
        "mean": {"error": error, "cosine": cosine}, "moved": 0.1, "loss": {"mnist": 1.0}, "accuracy": accuracy,
    }  # fmt: skip


ROWS = [
    row("gd", 1, 2e-13, 1.0, {"mnist": 0.5, "shapes": 0.3}),
    row("gd", 10, 0.2, 0.9, {"mnist": 0.6, "shapes": 0.4}),
    row("adam", 1, 80.0, 0.25, {"mnist": 0.7, "shapes": 0.5}),
    row("adam", 10, 70.0, -0.1, {"mnist": 0.2, "shapes": 0.2}),
]
BASE = {"loss": {"mnist": 2.0}, "accuracy": {"mnist": 0.4, "shapes": 0.2}}


def drawn(figure) -> dict[str, tuple[list, list]]:
    return {trace["name"]: (list(trace["x"]), list(trace["y"])) for trace in figure.to_dict()["data"]}


def test_errors_are_drawn_on_a_logarithmic_axis_by_optimiser():
    figure = figures.theorem_errors(ROWS)
    assert drawn(figure) == {"GD, full batch": ([1, 10], [2e-13, 0.2]), "Adam": ([1, 10], [80.0, 70.0])}
    assert figure.to_dict()["layout"]["yaxis"]["type"] == "log"
    assert list(figure.to_dict()["layout"]["xaxis"]["tickvals"]) == [1, 10]
    assert drawn(figures.theorem_errors(ROWS, part="mnist"))["Adam"] == ([1, 10], [40.0, 35.0])


def test_an_error_of_nothing_has_a_place_and_says_that_it_is_nothing():
    (trace,) = figures.theorem_errors([row("gd", 1, 0.0, 1.0, None)]).to_dict()["data"]
    assert 0 < trace["y"][0] < 1e-15 and list(trace["customdata"]) == [0.0]


def test_cosines_are_drawn_and_all_of_them_lie_on_the_axis():
    figure = figures.theorem_cosines(ROWS)
    assert drawn(figure) == {"GD, full batch": ([1, 10], [1.0, 0.9]), "Adam": ([1, 10], [0.25, -0.1])}
    low, high = figure.to_dict()["layout"]["yaxis"]["range"]
    assert low < -0.1 and high > 1


def test_accuracy_starts_at_the_base_and_stands_beside_it():
    lines = drawn(figures.theorem_accuracy(ROWS, BASE))
    for name, shares in {"GD, full batch": [0.3, 0.4, 0.5], "Adam": [0.3, 0.6, 0.2], "base": [0.3, 0.3]}.items():
        assert lines[name] == ([0, 10] if name == "base" else [0, 1, 10], pytest.approx(shares))
    assert drawn(figures.theorem_accuracy(ROWS, BASE, part="shapes"))["Adam"][1] == [0.2, 0.5, 0.2]


def test_optimisers_look_alike_in_every_figure_and_never_by_colour_alone():
    every = [row(name, 1, 0.1, 1.0, {"mnist": 0.5}) for name in ("gd", "sgd", "momentum", "adam", "adamw")]
    figure = figures.theorem_errors(every).to_dict()["data"]
    assert len({(t["line"]["color"], t["line"]["dash"], t["marker"]["symbol"]) for t in figure}) == 5
    (alone,) = figures.theorem_cosines(every[3:4]).to_dict()["data"]
    assert alone["line"] == figure[3]["line"]
    assert style("base").color not in {t["line"]["color"] for t in figure}


def test_nothing_measured_is_said():
    for figure in (
        figures.theorem_errors([]), figures.theorem_cosines([]), figures.theorem_accuracy([], BASE),
        figures.theorem_accuracy([row("gd", 1, 0.1, 1.0, None)], {"loss": {}, "accuracy": None}),
    ):  # fmt: skip
        assert not figure.data and figure.to_dict()["layout"]["annotations"]
    assert "not been looked at" in figures.describe_theorem({"rows": []})


def test_the_sentence_says_what_holds_what_breaks_and_where_merging_is_best():
    text = figures.describe_theorem({"rows": ROWS, "base": BASE})
    assert "After one step of full-batch gradient descent" in text and "2e-13" in text
    assert "after 10 steps it is 20% off, with a cosine of 0.900" in text and "raises" not in text
    assert "cosine of only 0.25 (Adam)" in text
    assert "base is right on 30.0%" in text and "one step of gradient descent on 40.0%" in text
    assert "after one step of Adam, 60.0%" in text


def test_a_rate_that_is_too_high_is_said():
    text = figures.describe_theorem({"rows": [{**ROWS[0], "loss": {"mnist": 5.0}}], "base": BASE})
    assert "raises the mean loss, from 2.00 to 5.00" in text and "lower rate" in text


def test_the_sentence_says_when_no_merge_is_better_than_the_base():
    high = {"loss": {}, "accuracy": {"mnist": 0.9, "shapes": 0.9}}
    assert "no merge here beats it" in figures.describe_theorem({"rows": ROWS, "base": high})
    bare = figures.describe_theorem({"rows": [row("sgd", 1, 0.5, 0.8, None)], "base": {"loss": {}, "accuracy": None}})
    assert bare == ""
