"""Figures of routed models: shares of tasks over experts, weights, accuracy by rank, storage, seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from .heatmap import layer_heatmap
from .palette import GRID, INK, empty, finish, series_of, short, style

#: The part of the height that the upper of two panels takes.
_SPLIT = 0.42


def share_heatmap(
    rows: Sequence[str], columns: Sequence[str], matrix: Sequence[Sequence[float | None]], *, height: int = 380
) -> go.Figure:
    """Shares from 0 to 1, ``matrix[row][column]``, on one scale whatever the numbers, so that two maps compare."""
    if not rows or not columns:
        return empty("No router has been asked yet.", height)
    figure = layer_heatmap(columns, rows, matrix, height=height)
    figure.update_traces(zmin=0, zmax=1)
    figure.update_xaxes(ticktext=[short(column, 9) for column in columns])  # clear of the scale below
    return figure


def weight_bars(rows: Sequence[Mapping[str, Any]], *, height: int = 300) -> go.Figure:
    """Draw ``rows`` with keys ``series, role, task, weight``: one bar a task and series, in the given order."""
    if not rows:
        return empty("No weights yet.", height)
    tasks = list(dict.fromkeys(str(row["task"]) for row in rows))
    figure = go.Figure()
    for name, look in series_of(rows):
        mine = {str(row["task"]): float(row["weight"]) for row in rows if str(row["series"]) == name}
        values = [mine.get(task, 0.0) for task in tasks]
        figure.add_trace(
            go.Bar(
                name=name, orientation="h", x=values, y=list(range(len(tasks))), customdata=tasks,
                text=[f"{value:.2f}" if abs(value) >= 0.005 else "" for value in values], textposition="outside",
                textfont={"size": 11}, cliponaxis=False,
                marker={
                    "color": look.color,
                    "line": {"color": look.color, "width": 1},
                    "pattern": {"shape": look.pattern, "size": 6, "solidity": 0.5},
                },
                hovertemplate="%{customdata}: %{x:.3f}<extra>" + name + "</extra>",
            )
        )  # fmt: skip
    low = min(0.0, *(float(row["weight"]) for row in rows))
    high = max(1.0, *(float(row["weight"]) for row in rows))
    figure.update_layout(barmode="group", bargap=0.3, uniformtext={"minsize": 10, "mode": "show"})
    figure.update_xaxes(range=[low * 1.12, high * 1.12])
    figure.update_yaxes(
        tickvals=list(range(len(tasks))), ticktext=[short(task, 16) for task in tasks], autorange="reversed",
        showgrid=False, zeroline=False,
    )  # fmt: skip
    return finish(figure, height=height, margin={"l": 12, "t": 8, "b": 30}).update_layout(legend={"y": -0.12})


def rank_curve(
    ranks: Sequence[str], accuracy: Sequence[float], megabytes: Sequence[float], chosen: int, *,
    references: Mapping[str, float] | None = None, height: int = 420,
) -> go.Figure:  # fmt: skip
    """Above: accuracy by rank, with level lines of ``references`` (name -> accuracy; base, experts, merged keep their
    looks). Below: what is stored, in MB. ``chosen`` is the place that is marked in both."""
    if not ranks:
        return empty("The curve has not been computed yet.", height)
    look, x = style("merged"), list(range(len(ranks)))
    figure = go.Figure()
    for index, (name, value) in enumerate((references or {}).items()):
        other = style(name, index) if name in ("base", "experts") else style("kept", index)
        figure.add_trace(
            go.Scatter(
                name=name, x=x, y=[value] * len(x), mode="lines", customdata=[name] * len(x),
                line={"color": other.color, "dash": other.dash, "width": 2},
                hovertemplate="%{customdata}: %{y:.1%}<extra></extra>",
            )
        )  # fmt: skip
    figure.add_trace(
        go.Scatter(
            name="routed", x=x, y=list(accuracy), customdata=list(ranks), mode="lines+markers",
            line={"color": look.color, "width": 3},
            marker={
                "color": look.color, "size": [15 if i == chosen else 7 for i in x],
                "symbol": ["diamond" if i == chosen else "circle" for i in x],
            },
            hovertemplate="rank %{customdata}: %{y:.1%}<extra>routed</extra>",
        )
    )  # fmt: skip
    figure.add_trace(
        go.Bar(
            name="stored, MB", x=x, y=list(megabytes), customdata=list(ranks), yaxis="y2",
            text=[f"{value:.0f}" for value in megabytes], textposition="outside", textfont={"size": 11},
            cliponaxis=False,
            marker={
                "color": [look.color if i == chosen else "rgba(0, 114, 178, 0.35)" for i in x],
                "line": {"color": look.color, "width": 1},
            },
            hovertemplate="rank %{customdata}: %{y:.1f} MB<extra></extra>",
        )
    )  # fmt: skip
    figure.update_layout(
        yaxis={"domain": [_SPLIT + 0.06, 1], "tickformat": ".0%", "title": {"text": "accuracy"}, "rangemode": "tozero"},
        yaxis2={
            "domain": [0, _SPLIT - 0.06], "title": {"text": "MB stored"}, "rangemode": "tozero", "gridcolor": GRID,
            "range": [0, max(megabytes) * 1.25], "anchor": "x", "tickfont": {"color": INK},
        },
        bargap=0.35,
    )  # fmt: skip
    figure.update_xaxes(
        tickvals=x, ticktext=list(ranks), showgrid=False, zeroline=False, anchor="y2", title={"text": "rank"}
    )
    return finish(figure, height=height, margin={"b": 96, "l": 56}).update_layout(legend={"y": -0.2})


def count_lines(
    places: Sequence[str], series: Mapping[str, Sequence[float | None]], *, axis: str = "", below: str = "",
    logarithmic: bool = False, highlight: str = "", height: int = 400,
) -> go.Figure:  # fmt: skip
    """One line a series over ``places``; the one called ``highlight`` is drawn as the page's own model is."""
    if not places or not series:
        return empty("Nothing has been measured yet.", height)
    figure = go.Figure()
    others = 0
    for name, values in series.items():
        look = style("merged")
        if name != highlight:
            look = _OTHERS[others % len(_OTHERS)]
            others += 1
        figure.add_trace(
            go.Scatter(
                name=name, x=list(range(len(places))), y=list(values), customdata=list(places), mode="lines+markers",
                line={"color": look.color, "dash": look.dash, "width": 3 if name == highlight else 2},
                marker={"symbol": look.marker, "size": 8 if name == highlight else 7, "color": look.color},
                hovertemplate="%{customdata}: %{y:.4g}<extra>" + name + "</extra>",
            )
        )  # fmt: skip
    figure.update_xaxes(
        tickvals=list(range(len(places))), ticktext=list(places), showgrid=False, zeroline=False, title={"text": below}
    )
    drawn = [value for line in series.values() for value in line if value is not None and value > 0]
    if logarithmic and drawn:
        figure.update_yaxes(type="log", tickvals=_decades(min(drawn), max(drawn)))
    else:
        figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(title={"text": axis})
    rows = len(series) if max(map(len, series)) > 14 else -(-len(series) // 3)  # of the legend, on a phone
    figure = finish(figure, height=height + 20 * rows, margin={"b": 72 + 20 * rows, "l": 56})
    return figure.update_layout(legend={"y": -60 / (height - 100)})


def _decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten that hold ``low`` to ``high``."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return [step * 10.0**power for power in range(first, last + 1) for step in (1, 2, 5)]


#: Looks of what a routed model is compared with.
_OTHERS = (style("base"), style("experts"), *(style("kept", index) for index in range(5)))
