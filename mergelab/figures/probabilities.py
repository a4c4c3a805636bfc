"""Class probabilities from several models for one picture, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from .palette import empty, finish, series_of, short


def probability_bars(rows: Sequence[Mapping[str, Any]], *, top: int = 5, height: int = 300) -> go.Figure:
    """Draw ``rows`` with keys ``series, role, class, probability``: the ``top`` classes by their best probability."""
    if not rows:
        return empty("No prediction yet.", height)
    best: dict[str, float] = {}
    for row in rows:
        best[str(row["class"])] = max(best.get(str(row["class"]), 0.0), float(row["probability"]))
    classes = sorted(best, key=lambda name: -best[name])[:top]
    labels = [short(name, 16) for name in classes]
    figure = go.Figure()
    for name, look in series_of(rows):
        mine = {str(row["class"]): float(row["probability"]) for row in rows if str(row["series"]) == name}
        values = [mine.get(label, 0.0) for label in classes]
        figure.add_trace(
            go.Bar(
                name=name,
                orientation="h",
                y=list(range(len(classes))),
                x=values,
                customdata=classes,
                text=[f"{value:.0%}" if value >= 0.005 else "" for value in values],
                textposition="outside",
                textfont={"size": 11},
                cliponaxis=False,
                marker={
                    "color": look.color,
                    "line": {"color": look.color, "width": 1},
                    "pattern": {"shape": look.pattern, "size": 6, "solidity": 0.5},
                },
                hovertemplate="%{customdata}: %{x:.1%}<extra>" + name + "</extra>",
            )
        )
    figure.update_layout(barmode="group", bargap=0.3, uniformtext={"minsize": 10, "mode": "show"})
    figure.update_xaxes(range=[0, 1.12], tickformat=".0%", tickvals=[0, 0.25, 0.5, 0.75, 1])
    figure.update_yaxes(
        tickvals=list(range(len(classes))), ticktext=labels, autorange="reversed", showgrid=False, zeroline=False
    )
    return finish(figure, height=height, margin={"l": 12, "t": 8, "b": 30}).update_layout(legend={"y": -0.16})
