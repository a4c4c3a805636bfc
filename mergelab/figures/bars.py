"""Grouped bars: accuracy on every task with its interval, one colour and pattern a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from .palette import GRID, INK, empty, finish, series_of, short


def accuracy_bars(
    rows: Sequence[Mapping[str, Any]], *, value: str = "accuracy", height: int = 380, axis: str = ""
) -> go.Figure:
    """Draw ``rows`` with keys ``series, role, title`` and ``value``; ``low`` and ``high`` are error bars."""
    rows = [row for row in rows if row.get(value) is not None]
    if not rows:
        return empty("No numbers yet.", height)
    titles = list(dict.fromkeys(str(row["title"]) for row in rows))
    figure = go.Figure()
    for name, look in series_of(rows):
        mine = {str(row["title"]): row for row in rows if str(row["series"]) == name}
        shown = [mine[title] for title in titles if title in mine]
        figure.add_trace(
            go.Bar(
                name=name,
                x=[short(str(row["title"]), 16) for row in shown],
                y=[row[value] for row in shown],
                customdata=[str(row["title"]) for row in shown],
                marker={
                    "color": look.color,
                    "line": {"color": look.color, "width": 1},
                    "pattern": {"shape": look.pattern, "size": 6, "solidity": 0.5},
                },
                error_y=_interval(shown, value),
                hovertemplate="%{customdata}: %{y:.3f}<extra>" + name + "</extra>",
            )
        )
    figure.update_layout(barmode="group", bargap=0.25)
    figure.update_yaxes(title={"text": axis}, rangemode="tozero", gridcolor=GRID)
    figure.update_xaxes(tickangle=-35)
    return finish(figure, height=height, margin={"b": 70}).update_layout(legend={"y": -0.3})


def _interval(rows: Sequence[Mapping[str, Any]], value: str) -> dict[str, Any]:
    if any(row.get("low") is None or row.get("high") is None for row in rows):
        return {"visible": False}
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(0.0, row["high"] - row[value]) for row in rows],
        "arrayminus": [max(0.0, row[value] - row["low"]) for row in rows],
        "color": INK,
        "thickness": 1.2,
        "width": 3,
    }
