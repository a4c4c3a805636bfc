"""Figures of methods that need data: the numbers that go in are drawn, sentences say what is there."""

from __future__ import annotations

import pytest

from mergelab import figures

STEPS, J, ACCURACY = [0, 5, 10], [4.0, 1.0, 0.5], [0.5, 0.8, 0.7]


def test_the_path_draws_shares_of_j_and_accuracy_on_two_axes():
    drawn = figures.solve_curve(STEPS, J, ACCURACY, shown=2, best=1).to_dict()
    falls, accuracy, best = drawn["data"]
    assert list(falls["y"]) == [1.0, 0.25, 0.125] and list(accuracy["y"]) == ACCURACY
    assert accuracy["yaxis"] == best["yaxis"] == "y2" and drawn["layout"]["yaxis2"]["side"] == "right"
    assert list(best["x"]) == [5] and best["name"] == "chosen on validation"
    assert [line["x0"] for line in drawn["layout"]["shapes"]] == [10]


def test_a_path_without_an_objective_still_has_its_accuracy():
    data = figures.solve_curve(STEPS, [None] * 3, ACCURACY).to_dict()["data"]
    assert [trace["name"] for trace in data] == ["validation accuracy"]
    assert figures.solve_curve([], [], []).to_dict()["layout"]["annotations"]


@pytest.mark.parametrize(
    ("accuracy", "words"),
    [([0.5, 0.8, 0.7], "rises and falls"), ([0.5, 0.6, 0.7], "rises with every"), ([0.7, 0.6, 0.5], "only falls")],
)
def test_the_sentence_says_whether_accuracy_followed(accuracy, words):
    text = figures.describe_path(STEPS, J, accuracy, 0, 1)
    assert words in text and "falls all the way, to 12.5%" in text and "no iterations (the init)" in text


def test_what_could_not_be_measured_is_said():
    assert "could not be measured" in figures.describe_path(STEPS, J, [0.5, 0.6, None], 2, 1)
    assert "falls all the way" not in figures.describe_path(STEPS, [1.0, 2.0, 0.5], ACCURACY, 0, 1)


def test_lines_by_step_and_clouds_draw_what_they_get():
    data = figures.step_lines([1, 2], {"a": [0.1, 0.2], "b": [0.3, 0.1]}, axis="nats", shown=2, top=1.0).to_dict()
    assert [list(trace["y"]) for trace in data["data"]] == [[0.1, 0.2], [0.3, 0.1]]
    assert len({(trace["line"]["color"], trace["line"]["dash"]) for trace in data["data"]}) == 2
    points = {"merged": [[0, 1]], "expert": [[2, 3]], "corrected": [[4, 5]]}
    drawn = figures.clouds(points).to_dict()["data"]
    assert {t["name"]: [t["x"][0], t["y"][0]] for t in drawn} == {n: p[0] for n, p in points.items()}
    assert len({trace["marker"]["symbol"] for trace in drawn}) == 3, "not by colour alone"


def test_the_scale_of_coefficients_does_not_move_with_them():
    for matrix in ([[0.1, 0.2]], [[0.4, 0.9]], [[-0.2, 0.5]]):
        data = figures.coefficient_heatmap(["a", "b"], ["t"], matrix, top=1.0).to_dict()["data"][0]
        assert data["zmax"] == 1.0 and data["zmin"] == min(0.0, *matrix[0])


def test_sentences_of_coefficients_changes_and_bias():
    assert "moved most in b (0.50" in figures.describe_change({"a": 0.1, "b": 0.5})
    assert "Nothing moved" in figures.describe_change({"a": 0.0})
    assert "every coefficient is 0.300" in figures.describe_coefficients(["x"], [[0.3, 0.3]], 0)
    assert "x has the largest" in figures.describe_coefficients(["x", "y"], [[0.5], [0.1]], 3)
    text = figures.describe_learning([0.9, 0.5], [0.4, 0.6], [])
    assert "0.900 to 0.500" in text and "No task collapsed" in text
    assert "y: collapsed" in figures.describe_learning([0.9], [0.4], ["y: collapsed"])
    assert "leaves 50% of the distance" in figures.describe_bias({"a": 1.0, "b": 2.0}, {"a": 0.4, "b": 1.2})
