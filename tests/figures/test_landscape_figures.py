"""Figures of weight space: values lie where they belong, labels can be read, everything is known to plotly.js 3.3."""

from __future__ import annotations

import itertools
import json
import math

import pytest

from mergelab import figures
from mergelab.figures.heatmap import CELL_INK, SEQUENTIAL
from mergelab.figures.landscape import _levels
from mergelab.figures.palette import style

XS, YS = [-1.0, 0.0, 1.0], [-1.0, 1.0]
LOSSES = [[0.5, 0.1, 0.4], [2.0, None, 1.0]]
POINTS = [
    {"series": "base", "role": "base", "title": "base", "x": 0.0, "y": 0.0},
    {"series": "experts", "role": "experts", "title": "MNIST", "x": 1.0, "y": 0.0},
    {"series": "experts", "role": "experts", "title": "Fashion", "x": 0.2, "y": 0.9},
    {"series": "merged", "role": "merged", "title": "ATM", "x": 0.3, "y": 0.2, "off": 0.25},
    {"series": "joint", "role": "kept", "title": "joint", "x": 0.31, "y": 0.21, "off": 0.0},
]
PATHS = {"ATM": [[0, 0], [0.2, 0.1], [0.3, 0.2]], "joint training": [[0, 0], [0.31, 0.21]]}
LAND = figures.landscape(XS, YS, LOSSES, POINTS, PATHS, title="mean loss", unit="nats")
LINE = figures.barriers([0, 0.5, 1], {"mnist": [0.1, 0.9, 0.5], "mean": [0.2, 0.6, 0.4]}, ends=("MNIST", "Fashion"))
PLACES = {
    "names": ["base", "mnist", "round 1", "round 2", "lone"],
    "coordinates": [[-2, 0], [2, 1], [-1, 0.1], [0, 0.2], [1, -2]], "explained": [0.61, 0.2],
}  # fmt: skip
GROUPS = {"base": "base", "mnist": "experts", "round 1": "rounds", "round 2": "rounds"}
DOTS = figures.checkpoints(PLACES, GROUPS, {"ATM": ["base", "round 1", "round 2"]})


def traces(figure) -> dict:
    return {trace["name"]: trace for trace in figure.to_dict()["data"]}


def test_a_landscape_draws_values_points_and_paths_where_they_are():
    drawn = traces(LAND)
    assert list(drawn) == ["mean loss", "under ATM", "ATM", "under joint training", "joint training", "base", "experts",
                           "merged", "joint"]  # fmt: skip
    contour = drawn["mean loss"]
    assert [list(row) for row in contour["z"]] == LOSSES and list(contour["x"]) == XS and list(contour["y"]) == YS
    assert not contour["connectgaps"], "what was not measured stays open"
    assert list(drawn["ATM"]["x"]) == [0, 0.2, 0.3] and list(drawn["ATM"]["y"]) == [0, 0.1, 0.2]
    assert list(drawn["experts"]["x"]) == [1.0, 0.2] and list(drawn["experts"]["y"]) == [0.0, 0.9]
    assert drawn["ATM"]["marker"]["size"][-1] > drawn["ATM"]["marker"]["size"][0], "where it ends"
    assert list(drawn["merged"]["customdata"]) == ["ATM, 0.25 off the plane"]
    assert list(drawn["joint"]["customdata"]) == ["joint"]


def test_a_landscape_is_not_stretched_and_says_its_units():
    layout = LAND.to_dict()["layout"]
    assert layout["yaxis"]["scaleanchor"] == "x"
    assert (list(layout["xaxis"]["range"]), list(layout["yaxis"]["range"])) == ([-1, 1], [-1, 1])
    assert "parameter distance" in layout["annotations"][-1]["text"]
    contour = traces(LAND)["mean loss"]
    assert contour["colorbar"]["title"]["text"] == "mean loss, nats"
    shares = traces(figures.landscape(XS, YS, [[0.5, 0.1, 0.4]] * 2, title="mean accuracy", unit="%"))["mean accuracy"]
    assert shares["colorbar"]["title"]["text"] == "mean accuracy"
    assert shares["colorbar"]["tickformat"] == shares["contours"]["labelformat"] == ".0%"


def test_colours_end_where_they_are_told_to():
    assert (traces(LAND)["mean loss"]["zmin"], traces(LAND)["mean loss"]["zmax"]) == (0.1, 2.0)
    contour = traces(figures.landscape(XS, YS, LOSSES, top=0.5))["mean loss"]
    assert contour["zmax"] == 0.5 and contour["contours"]["end"] <= 0.5
    assert [list(row) for row in contour["z"]] == LOSSES
    assert traces(figures.landscape(XS, YS, LOSSES, top=9))["mean loss"]["zmax"] == 2.0


@pytest.mark.parametrize(("low", "high"), [(0.1, 2.0), (0.0, 1.0), (-3.0, 500.0), (0.9101, 0.9102), (1e-9, 2e-9)])
def test_contours_are_at_round_numbers(low, high):
    found = _levels(low, high)
    assert low <= found["start"] + 1e-12 and found["end"] <= high + 1e-12
    assert 5 <= (found["end"] - found["start"]) / found["size"] <= 15
    digit = found["size"] / 10 ** math.floor(math.log10(found["size"]) + 1e-9)
    assert digit == pytest.approx(round(digit)) and round(digit) in (1, 2, 5)
    assert _levels(1.0, 1.0) == {"start": 1.0, "end": 1.0, "size": 1.0}


def test_every_point_has_a_label_and_none_hides_another():
    layout = LAND.to_dict()["layout"]
    labels = layout["annotations"][:-1]
    assert [label["text"] for label in labels] == ["base", "MNIST", "Fashion", "ATM", "joint"]
    assert all(label["bgcolor"] and label["font"]["color"] == CELL_INK for label in labels)
    atm, joint = labels[3:]  # two points that all but coincide
    assert (atm["xshift"], atm["yshift"]) != (joint["xshift"], joint["yshift"])
    long = figures.landscape(XS, YS, LOSSES, [{**POINTS[0], "title": "a name that is far too long"}])
    assert len(long.to_dict()["layout"]["annotations"][0]["text"]) <= 16


def test_no_two_series_look_alike():
    drawn = [trace for trace in LAND.to_dict()["data"] if trace["type"] == "scatter" and "marker" in trace]
    assert len({(trace["marker"]["color"], trace["marker"]["symbol"]) for trace in drawn}) == len(drawn)
    many = {f"path {i}": PATHS["ATM"] for i in range(3)}
    drawn = [t for t in figures.landscape(XS, YS, LOSSES, POINTS, many).to_dict()["data"] if "marker" in t]
    assert len({(trace["marker"]["color"], trace["marker"]["symbol"]) for trace in drawn}) == len(drawn)


def test_the_way_of_a_run_looks_as_the_run_does():
    shared = {"ATM": "merged", "joint training": "joint"}
    drawn = traces(figures.landscape(XS, YS, LOSSES, POINTS, PATHS, looks=shared))
    for path, run in shared.items():
        assert drawn[path]["marker"]["color"] == drawn[run]["marker"]["color"] != drawn["base"]["marker"]["color"]
    drawn = traces(figures.checkpoints(PLACES, GROUPS, {"ATM": ["base", "round 1"]}, looks={"ATM": "rounds"},
                                       merged="rounds"))  # fmt: skip
    assert drawn["ATM"]["line"]["color"] == drawn["rounds"]["marker"]["color"] == style("merged").color


def test_a_crowded_projection_leaves_labels_out_rather_than_hide_others():
    names = [f"model {i}" for i in range(40)]
    near = {"names": names, "coordinates": [[0.01 * (i % 7), 0.01 * (i // 7)] for i in range(39)] + [[5, 5]],
            "explained": [0.6, 0.2]}  # fmt: skip
    drawn = figures.checkpoints(near).to_dict()
    labels = [label["text"] for label in drawn["layout"]["annotations"]]
    assert "model 39" in labels and len(labels) < 12
    assert len(traces(figures.checkpoints(near))["checkpoints"]["customdata"]) == 40, "every name is in the hover"


def test_barriers_draw_every_curve_with_its_chord():
    drawn = traces(LINE)
    assert list(drawn) == ["mnist", "chord of mnist", "mean", "chord of mean"]
    assert list(drawn["mnist"]["y"]) == [0.1, 0.9, 0.5]
    assert list(drawn["chord of mnist"]["x"]) == [0, 1] and list(drawn["chord of mnist"]["y"]) == [0.1, 0.5]
    assert drawn["chord of mean"]["line"]["dash"] == "dot" and not drawn["chord of mean"]["showlegend"]
    assert drawn["mean"]["line"]["color"] == drawn["chord of mean"]["line"]["color"] == style("merged").color
    assert drawn["mnist"]["line"]["color"] != drawn["mean"]["line"]["color"]
    assert LINE.to_dict()["layout"]["xaxis"]["title"]["text"] == "share of Fashion, the rest MNIST"
    open_ended = figures.barriers([0, 0.5, 1], {"a": [0.1, None, None]})
    assert list(traces(open_ended)) == ["a"] and list(traces(open_ended)["a"]["y"]) == [0.1, None, None]


def test_checkpoints_lie_where_they_were_projected():
    drawn = traces(DOTS)
    assert list(drawn) == ["ATM", "base", "experts", "rounds", "checkpoints"]
    assert list(drawn["ATM"]["x"]) == [-2, -1, 0] and list(drawn["ATM"]["y"]) == [0, 0.1, 0.2]
    assert list(drawn["rounds"]["x"]) == [-1, 0] and list(drawn["checkpoints"]["customdata"]) == ["lone"]
    for group in ("base", "experts"):
        assert drawn[group]["marker"]["symbol"] == style(group).marker
    symbols = [drawn[group]["marker"]["symbol"] for group in ("base", "experts", "rounds", "checkpoints")]
    assert len(set(symbols)) == 4
    layout = DOTS.to_dict()["layout"]
    assert "61%" in layout["xaxis"]["title"]["text"] and "20%" in layout["yaxis"]["title"]["text"]
    assert [label["text"] for label in layout["annotations"]] == ["base", "mnist", "round 2", "lone"], "ends, not steps"


def test_one_checkpoint_and_none():
    one = {"names": ["a"], "coordinates": [(0.0, 0.0)], "explained": (0.0, 0.0)}
    assert list(traces(figures.checkpoints(one))["checkpoints"]["x"]) == [0.0]


FIGURES = {
    "landscape": LAND,
    "bare landscape": figures.landscape(XS, YS, LOSSES),
    "flat landscape": figures.landscape(XS, YS, [[0.5] * 3] * 2),
    "no landscape": figures.landscape(XS, YS, [[None] * 3, [math.nan] * 3]),
    "landscape with holes": figures.landscape(XS, YS, [[0.5, math.inf, 0.4], [2.0, math.nan, 1.0]]),
    "barriers": LINE,
    "no barriers": figures.barriers([], {}),
    "checkpoints": DOTS,
    "no checkpoints": figures.checkpoints({"names": [], "coordinates": [], "explained": (0, 0)}),
}

#: What plotly.js 3.3 knows and these figures need; anything else may silently not be drawn.
ALLOWED = {
    "contour": {"type", "name", "x", "y", "z", "colorscale", "zmin", "zmax", "connectgaps", "line", "contours",
                "hovertemplate", "colorbar"},
    "scatter": {"type", "name", "x", "y", "customdata", "mode", "line", "marker", "hovertemplate", "hoverinfo",
                "showlegend"},
}  # fmt: skip
LAYOUT = {
    "template", "autosize", "height", "margin", "paper_bgcolor", "plot_bgcolor", "font", "showlegend", "legend",
    "hoverlabel", "xaxis", "yaxis", "annotations", "modebar",
}  # fmt: skip


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_safe_to_draw(name):
    figure = FIGURES[name].to_dict()
    for trace in figure["data"]:
        assert set(trace) <= ALLOWED[trace["type"]]
    layout = figure["layout"]
    assert set(layout) <= LAYOUT
    assert "title" not in layout, "Gradio adds 100 px for a title"
    assert layout["paper_bgcolor"].endswith(", 0)") and layout["plot_bgcolor"].endswith(", 0)"), "must be transparent"
    assert layout["autosize"] and "width" not in layout, "must follow its container"
    text = json.dumps(json.loads(FIGURES[name].to_json()))
    assert "NaN" not in text and "Infinity" not in text
    if not figure["data"]:
        assert layout["annotations"][0]["text"], "says why there is nothing"


def luminance(color: list[float]) -> float:
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in (part / 255 for part in color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: list[float], b: list[float]) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def channels(text: str) -> list[float]:
    return [int(text[i : i + 2], 16) for i in (1, 3, 5)]


@pytest.mark.parametrize("behind", ["#ffffff", "#0f141b", "#000000", *(color for _, color in SEQUENTIAL)])
def test_labels_can_be_read_on_every_page_and_every_cell(behind):
    """WCAG's 4.5 for the ink on its plate, as the plate's white mixes with what is behind it."""
    label = LAND.to_dict()["layout"]["annotations"][0]
    *white, alpha = (float(part) for part in label["bgcolor"][5:-1].split(","))
    mixed = [w * alpha + b * (1 - alpha) for w, b in zip(white, channels(behind), strict=True)]
    assert contrast(channels(label["font"]["color"]), mixed) >= 4.5


def test_paths_stand_off_from_every_cell():
    """The dark line under them does, and the numbers on the contours."""
    contour = traces(LAND)["mean loss"]
    assert contour["contours"]["labelfont"]["color"] == traces(LAND)["under ATM"]["line"]["color"] == CELL_INK
    for (_, first), (_, second) in itertools.pairwise(SEQUENTIAL):
        for part in range(11):
            cell = [a + (b - a) * part / 10 for a, b in zip(channels(first), channels(second), strict=True)]
            assert contrast(channels(CELL_INK), cell) >= 4.5
