"""Figures of methods that need data: a solver's path, learned coefficients, features before and after a correction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from .palette import GRID, empty, finish, short, style

_CLOUDS = {"expert": ("experts", 0), "merged": ("merged", 0), "corrected": ("kept", 0)}


def solve_curve(
    steps: Sequence[int],
    objective: Sequence[float | None],
    accuracy: Sequence[float | None],
    *,
    shown: int = 0,
    best: int | None = None,
    height: int = 360,
) -> go.Figure:
    """Objective (left, logarithmic, as a share of the first) and validation accuracy (right) against iterations.

    ``shown`` is the place that the page shows now, ``best`` the one chosen on validation (a star).
    """
    if not steps:
        return empty("No path yet.", height)
    falls, rises = style("experts"), style("merged")
    first = next((value for value in objective if value), None)
    figure = go.Figure()
    if first:
        figure.add_trace(
            go.Scatter(
                name="J, which falls", x=list(steps), y=[v / first if v else None for v in objective],
                mode="lines+markers", line={"color": falls.color, "dash": falls.dash, "width": 2},
                marker={"symbol": falls.marker, "size": 7, "color": falls.color},
                hovertemplate="%{x} iterations: J is %{y:.2%} of its start<extra></extra>",
            )
        )  # fmt: skip
    figure.add_trace(
        go.Scatter(
            name="validation accuracy", x=list(steps), y=list(accuracy), yaxis="y2", mode="lines+markers",
            line={"color": rises.color, "dash": rises.dash, "width": 2},
            marker={
                "color": rises.color, "size": [14 if i == shown else 7 for i in range(len(steps))],
                "symbol": ["circle-open-dot" if i == shown else "circle" for i in range(len(steps))],
            },
            hovertemplate="%{x} iterations: %{y:.1%}<extra>validation</extra>",
        )
    )  # fmt: skip
    if best is not None and accuracy[best] is not None:
        mark = style("kept")
        figure.add_trace(
            go.Scatter(
                name="chosen on validation", x=[steps[best]], y=[accuracy[best]], yaxis="y2", mode="markers",
                marker={"symbol": "star", "size": 15, "color": mark.color, "line": {"width": 1, "color": "#ffffff"}},
                hovertemplate="chosen on validation: %{x} iterations, %{y:.1%}<extra></extra>",
            )
        )  # fmt: skip
    figure.add_vline(x=steps[shown], line={"color": GRID, "width": 2})
    figure.update_xaxes(title=_title("iterations of conjugate gradients"), showgrid=False, rangemode="tozero")
    figure.update_layout(
        yaxis={"type": "log", "title": _title("J, share of its start"), "tickformat": ".1%", "dtick": 1},
        yaxis2={
            "title": _title("accuracy"), "overlaying": "y", "side": "right", "tickformat": ".0%", "showgrid": False,
            "automargin": True,
        },
    )  # fmt: skip
    return finish(figure, height=height, margin={"l": 56, "r": 56, "b": 90}).update_layout(legend={"y": -0.27})


def _title(text: str) -> dict[str, Any]:
    return {"text": text, "font": {"size": 12}, "standoff": 6}


def step_lines(
    steps: Sequence[int], series: Mapping[str, Sequence[float]], *, axis: str, shown: int | None = None,
    top: float | None = None, height: int = 320,
) -> go.Figure:  # fmt: skip
    """One line a series over optimiser steps; ``shown`` is a step that is marked."""
    if not steps or not series:
        return empty("Nothing was learned yet.", height)
    figure = go.Figure()
    for index, (name, values) in enumerate(series.items()):
        look = style("counted", index)
        figure.add_trace(
            go.Scatter(
                name=short(name, 18), x=list(steps), y=list(values), mode="lines",
                line={"color": look.color, "dash": look.dash, "width": 2},
                hovertemplate="step %{x}: %{y:.3g}<extra>" + name + "</extra>",
            )
        )  # fmt: skip
    if shown is not None:
        figure.add_vline(x=shown, line={"color": GRID, "width": 2})
    figure.update_xaxes(title=_title("step"), showgrid=False, rangemode="tozero")
    figure.update_yaxes(title=_title(axis), rangemode="tozero")
    if top is not None:
        figure.update_yaxes(range=[0, top])
    return finish(figure, height=height, margin={"b": 110}).update_layout(legend={"y": -0.24})


def clouds(points: Mapping[str, Sequence[Sequence[float]]], *, height: int = 380) -> go.Figure:
    """Features in two dimensions: the expert's, the merged model's, and the corrected ones."""
    if not points:
        return empty("No features yet.", height)
    figure = go.Figure()
    for name, (role, index) in _CLOUDS.items():
        if name not in points:
            continue
        look = style(role, index)
        figure.add_trace(
            go.Scatter(
                name=name, x=[p[0] for p in points[name]], y=[p[1] for p in points[name]], mode="markers",
                marker={"symbol": look.marker, "size": 7, "color": look.color, "opacity": 0.65},
                hovertemplate="%{x:.2f}, %{y:.2f}<extra>" + name + "</extra>",
            )
        )  # fmt: skip
    figure.update_xaxes(title=_title("first principal direction"))
    figure.update_yaxes(title=_title("second principal direction"))
    return finish(figure, height=height, margin={"b": 80}).update_layout(legend={"y": -0.22})


def coefficient_heatmap(
    layers: Sequence[str],
    tasks: Sequence[str],
    matrix: Sequence[Sequence[float | None]],
    *,
    top: float,
    height: int = 380,
) -> go.Figure:
    """A number of every row in every layer (columns), on a scale to ``top`` that stays while steps pass."""
    from .heatmap import layer_heatmap

    figure = layer_heatmap(layers, tasks, matrix, height=height)
    if figure.data:
        values = [value for row in matrix for value in row if value is not None]
        figure.update_traces(zmin=min([0.0, *values]), zmax=top)
    return figure
