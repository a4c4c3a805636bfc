"""Figures: the numbers that go in are the numbers that are drawn, and everything drawn is known to plotly.js 3.3."""

from __future__ import annotations

import itertools
import json
import math

import pytest

from mergelab import figures
from mergelab.figures import heatmap
from mergelab.figures.palette import _KEPT, CYCLE, short, style

TASKS = ["mnist", "fashion", "emoji", "shapes"]


def rows(series: str, role: str, values: list[float | None]) -> list[dict]:
    return [
        {"series": series, "role": role, "task": task, "title": task.title(), "seen": True, "n": 40,
         "normalised": value, "accuracy": None if value is None else value * 0.9,
         "low": None if value is None else value * 0.9 - 0.05, "high": None if value is None else value * 0.9 + 0.02}
        for task, value in zip(TASKS, values, strict=True)
    ]  # fmt: skip


ALL = [
    *rows("base", "base", [0.2, 0.3, 0.1, 0.4]),
    *rows("experts", "experts", [1.0, 1.0, 1.0, 1.0]),
    *rows("merged", "merged", [0.9, 0.7, 0.6, 1.1]),
]


def test_radar_closes_every_line_and_draws_the_given_values():
    data = figures.radar(ALL).to_dict()["data"]
    assert [trace["name"] for trace in data] == ["base", "experts", "merged"]
    for trace, want in zip(data, [[0.2, 0.3, 0.1, 0.4], [1, 1, 1, 1], [0.9, 0.7, 0.6, 1.1]], strict=True):
        assert list(trace["r"]) == [*want, want[0]]
        assert list(trace["theta"]) == ["Mnist", "Fashion", "Emoji", "Shapes", "Mnist"]


def test_radar_shows_the_ring_at_one_and_all_that_lies_beyond_it():
    layout = figures.radar(ALL).to_dict()["layout"]
    assert 1.0 in layout["polar"]["radialaxis"]["tickvals"]
    low, high = layout["polar"]["radialaxis"]["range"]
    assert low == 0 and high >= 1.1


def test_radar_leaves_out_tasks_without_an_expert():
    extra = [{**row, "task": "letters", "title": "Letters", "normalised": None} for row in ALL[:1]]
    assert "Letters" not in figures.radar([*ALL, *extra]).to_dict()["data"][0]["theta"]


def test_radar_with_two_tasks_is_bars_of_the_same_numbers():
    two = [row for row in ALL if row["task"] in TASKS[:2]]
    data = figures.radar(two).to_dict()["data"]
    assert {trace["type"] for trace in data} == {"bar"}
    assert list(data[2]["y"]) == [0.9, 0.7]


def test_tasks_with_the_same_beginning_keep_their_own_spoke():
    long = [{**row, "title": f"A very long task title {row['task']}"} for row in ALL]
    theta = figures.radar(long).to_dict()["data"][0]["theta"]
    assert len(set(theta)) == 4


def test_bars_carry_the_interval_as_distances_from_the_value():
    trace = figures.accuracy_bars(ALL).to_dict()["data"][2]
    assert list(trace["y"]) == pytest.approx([0.81, 0.63, 0.54, 0.99])
    assert list(trace["error_y"]["array"]) == pytest.approx([0.02] * 4)
    assert list(trace["error_y"]["arrayminus"]) == pytest.approx([0.05] * 4)


def test_cosines_are_centred_at_zero_and_the_diagonal_has_no_colour():
    matrix = [[1.0, 0.2, -0.12], [0.2, 1.0, 0.03], [-0.12, 0.03, 1.0]]
    trace = figures.cosine_heatmap(["a", "b", "c"], matrix).to_dict()["data"][0]
    assert trace["zmid"] == 0 and trace["zmin"] == -trace["zmax"]
    assert trace["zmax"] >= 0.2
    assert [list(row) for row in trace["z"]] == [[None, 0.2, -0.12], [0.2, None, 0.03], [-0.12, 0.03, None]]


def test_layer_heatmap_starts_at_zero():
    trace = figures.layer_heatmap(["block 0", "block 1"], ["a"], [[0.5, None]]).to_dict()["data"][0]
    assert trace["zmin"] == 0
    assert [list(row) for row in trace["z"]] == [[0.5, None]]


def test_lines_keep_the_order_of_layers():
    figure = figures.layer_lines(["l0", "l1", "l10"], {"a": [3, 1, 2], "b": [None, 5, 6]}, top=1).to_dict()
    assert [list(trace["y"]) for trace in figure["data"]] == [[3, 1, 2], [None, 5, 6]]
    assert list(figure["layout"]["xaxis"]["ticktext"]) == ["l0", "l1", "l10"]
    assert list(figure["layout"]["yaxis"]["range"]) == [0, 1]


def probabilities() -> list[dict]:
    said = {"base": [0.5, 0.3, 0.2, 0, 0, 0], "expert": [0, 0, 0, 0.9, 0.1, 0], "merged": [0, 0, 0.4, 0.6, 0, 0]}
    roles = {"base": "base", "expert": "experts", "merged": "merged"}
    return [
        {"series": name, "role": roles[name], "class": f"c{i}", "probability": value}
        for name, values in said.items()
        for i, value in enumerate(values)
    ]


def test_probability_bars_show_the_classes_that_any_model_believes_in():
    data = figures.probability_bars(probabilities(), top=4).to_dict()["data"]
    assert list(data[0]["customdata"]) == ["c3", "c0", "c2", "c1"]
    assert list(data[2]["x"]) == [0.6, 0, 0.4, 0]


def test_no_two_styles_share_a_colour_and_a_marker_or_a_pattern():
    for looks in (CYCLE, _KEPT):
        assert len({look.color for look in looks}) == len(looks)
        assert len({look.marker for look in looks}) == len(looks)
        assert len({(look.dash, look.marker) for look in looks}) == len(looks)
        assert len({look.pattern for look in looks}) == len(looks)
    assert style("kept", 5) == style("kept", 0)


def test_kept_results_each_get_their_own_look():
    many = [*ALL, *(row for i in range(5) for row in rows(f"earlier {i}", "kept", [0.5] * 4))]
    data = figures.radar(many).to_dict()["data"]
    assert len({(t["line"]["color"], t["line"]["dash"], t["marker"]["symbol"]) for t in data}) == len(data) == 8


def weights() -> list[dict]:
    return [
        {"series": name, "role": role, "task": task, "weight": value}
        for name, role, values in (("router", "merged", [0.7, 0.3]), ("by hand", "kept", [-0.5, 2.0]))
        for task, value in zip(TASKS, values, strict=False)
    ]


def test_shares_are_on_one_scale_from_0_to_1():
    trace = figures.share_heatmap(["a"], ["a", "b"], [[0.3, 0.2]]).to_dict()["data"][0]
    assert (trace["zmin"], trace["zmax"]) == (0, 1) and [list(row) for row in trace["z"]] == [[0.3, 0.2]]


def test_weights_beyond_0_and_1_are_inside_the_axis():
    figure = figures.weight_bars(weights()).to_dict()
    low, high = figure["layout"]["xaxis"]["range"]
    assert low < -0.5 and high > 2
    assert [list(trace["x"]) for trace in figure["data"]] == [[0.7, 0.3], [-0.5, 2.0]]


def test_the_chosen_rank_is_marked_in_both_panels():
    level, routed, stored = figures.rank_curve(
        ["0", "1", "all"], [0.5, 0.8, 0.9], [30, 31, 260], 1, references={"experts": 0.95}
    ).to_dict()["data"]
    assert (
        list(level["y"]) == [0.95] * 3 and list(routed["y"]) == [0.5, 0.8, 0.9] and list(stored["y"]) == [30, 31, 260]
    )
    assert list(routed["marker"]["symbol"]) == ["circle", "diamond", "circle"]
    assert stored["marker"]["color"][1] != stored["marker"]["color"][0] == stored["marker"]["color"][2]
    assert stored["yaxis"] == "y2"


def test_lines_of_counts_leave_gaps_and_write_plain_numbers_on_a_log_axis():
    figure = figures.count_lines(["1", "8"], {"a": [1, 2], "b": [None, 30]}, logarithmic=True, highlight="a").to_dict()
    assert [list(trace["y"]) for trace in figure["data"]] == [[1, 2], [None, 30]]
    assert figure["data"][0]["line"]["color"] == style("merged").color != figure["data"][1]["line"]["color"]
    assert {1, 2, 5, 10, 20, 50} <= set(figure["layout"]["yaxis"]["tickvals"]) and figure["layout"]["yaxis"][
        "type"
    ] == "log"


def test_sentences_of_routed_models_say_the_numbers():
    matrix = [[0.9, 0.1], [0.4, 0.6], [0.5, 0.5]]
    text = figures.describe_weights(["a", "b", "new"], ["a", "b"], matrix, ["A", "B", "New"])
    assert "75% of the weight" in text and "least on B (60%)" in text
    assert "40% of B is taken for A" in figures.describe_confusion(["a", "b"], ["a", "b"], matrix[:2], ["A", "B"])
    assert "right task every time" in figures.describe_confusion(["a", "b"], ["a", "b"], [[1, 0], [0, 1]])
    text = figures.describe_rank(["0", "1", "all"], [0.5, 0.8, 0.9], [30, 31, 260], 1)
    assert "rank 1 " in text and "80.0%" in text and "89%" in text and "31.0 MB" in text and "8.4 times less" in text
    text = figures.describe_storage({"mine": [1.0, 2.0], "dear": [1.0, 9.0], "cheap": [1.0, 1.5]}, "mine")
    assert "2 tasks" in text and "2.0 MB" in text and "dear takes 9.0 MB" in text and "cheap 1.5 MB" in text
    rows = {"plain": [0.01, 0.1], "adapter": [0.03, 0.2], "group": [0.02, None], "static": [0.001, 0.001]}
    assert "With 1 picture at once group is quickest: 20.0 ms a picture, 2.0 times" in figures.describe_latency(
        [1, 8], rows
    )
    items = [{"task": "a", "chosen": c, "right": r, "group": g} for c, r, g in (("a", True, 0), ("b", False, 1))]
    assert "1 of 2 pictures" in figures.describe_batch(items) and "2 merges in place of 2" in figures.describe_batch(
        items
    )


FIGURES = {
    "radar": figures.radar(ALL),
    "radar of nothing": figures.radar([]),
    "bars": figures.accuracy_bars(ALL),
    "bars of nothing": figures.accuracy_bars([]),
    "cosines": figures.cosine_heatmap(["a", "b"], [[1, 0.3], [0.3, 1]]),
    "cosine of one": figures.cosine_heatmap(["a"], [[1]]),
    "layers": figures.layer_heatmap(["l"], ["a"], [[1]]),
    "no layers": figures.layer_heatmap([], [], []),
    "lines": figures.layer_lines(["l0", "l1"], {"a": [1, 2], "b": [1, 1]}),
    "no lines": figures.layer_lines([], {}),
    "probabilities": figures.probability_bars(probabilities()),
    "no probabilities": figures.probability_bars([]),
    "shares": figures.share_heatmap(["a", "b"], ["a", "b"], [[0.9, 0.1], [0.2, 0.8]]),
    "no shares": figures.share_heatmap([], [], []),
    "weights": figures.weight_bars(weights()),
    "no weights": figures.weight_bars([]),
    "ranks": figures.rank_curve(["0", "1", "all"], [0.5, 0.8, 0.9], [30, 31, 260], 1, references={"experts": 0.95}),
    "no ranks": figures.rank_curve([], [], [], 0),
    "counts": figures.count_lines(["1", "8"], {"a": [1, 2], "b": [None, 30]}, logarithmic=True, highlight="a"),
    "no counts": figures.count_lines([], {}),
}

#: What plotly.js 3.3 knows and these figures need; anything else may silently not be drawn.
ALLOWED = {
    "scatterpolar": {"type", "name", "r", "theta", "customdata", "mode", "line", "marker", "fill", "fillcolor",
                     "hovertemplate"},
    "bar": {"type", "name", "x", "y", "customdata", "marker", "error_y", "hovertemplate", "orientation", "text",
            "textposition", "textfont", "cliponaxis", "yaxis"},
    "heatmap": {"type", "x", "y", "z", "customdata", "hovertemplate", "texttemplate", "textfont", "hoverongaps", "xgap",
                "ygap", "colorbar", "colorscale", "zmin", "zmax", "zmid"},
    "scatter": {"type", "name", "x", "y", "customdata", "mode", "line", "marker", "hovertemplate"},
}  # fmt: skip
LAYOUT = {
    "template", "autosize", "height", "margin", "paper_bgcolor", "plot_bgcolor", "font", "showlegend", "legend",
    "hoverlabel", "polar", "xaxis", "yaxis", "yaxis2", "barmode", "bargap", "annotations", "modebar", "uniformtext",
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
    assert "NaN" not in json.dumps(json.loads(FIGURES[name].to_json()))


def contrast(color: str, page: str) -> float:
    """WCAG 2 contrast ratio of two #rrggbb colours."""

    def luminance(text: str) -> float:
        parts = [int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(color), luminance(page)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("page", ["#ffffff", "#0f141b"])
def test_colours_show_on_a_light_and_on_a_dark_page(page):
    assert contrast(figures.radar(ALL).layout.font.color, page) >= 3
    for look in CYCLE:
        assert contrast(look.color, page) >= 2, look


def test_short_labels():
    assert short("OptDigits", 11) == "OptDigits"
    assert len(short("A very long title indeed", 11)) <= 11


def test_sentences_say_the_numbers():
    text = figures.describe_result(ALL, series="merged")
    mean = sum([0.9, 0.7, 0.6, 1.1]) / 4
    assert f"{mean:.0%}" in text and "4 of 4 tasks" in text
    assert "best on Shapes (110%)" in text and "worst on Emoji (60%)" in text
    assert "no task" in figures.describe_result([], series="merged").lower()
    assert "alike are a and c (cosine 0.40)" in figures.describe_cosines(
        ["a", "b", "c"], [[1, 0.1, 0.4], [0.1, 1, 0], [0.4, 0, 1]]
    )
    assert "that of b in l1" in figures.describe_norms(["l0", "l1"], {"a": [1, 2], "b": [0, 3]})
    said = figures.describe_conflict(["l0", "l1"], [0.2, 0.5], 0.31)
    assert "l1" in said and "50%" in said and "31%" in said
    said = figures.describe_prediction(probabilities(), truth="c3")
    assert "merged says “c3” (60%)" in said and "right: expert, merged" in said
    assert "nobody" in figures.describe_prediction(probabilities(), truth="c5")


def test_a_number_that_is_none_is_drawn_as_a_gap():
    trace = figures.cosine_heatmap(["a", "b"], [[1, math.nan], [math.nan, 1]]).to_dict()["data"][0]
    assert trace["z"][0][1] is None


@pytest.mark.parametrize("scale", [heatmap.DIVERGING, heatmap.SEQUENTIAL])
def test_a_number_can_be_read_on_every_cell(scale):
    """WCAG's 4.5 along the whole scale, as plotly.js mixes it, for the ink that the cells have."""
    figure = figures.layer_heatmap(["0", "1"], ["a"], [[0.1, 0.2]])
    ink = figure.data[0].textfont.color
    for (low, first), (high, second) in itertools.pairwise(scale):
        assert high > low
        ends = [[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in (first, second)]
        for step in range(11):
            mixed = [round(a + (b - a) * step / 10) for a, b in zip(*ends, strict=True)]
            assert contrast(ink, "#" + "".join(f"{value:02x}" for value in mixed)) >= 4.5
