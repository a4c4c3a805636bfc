"""The radar: normalised accuracy on every seen task, one line a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from .bars import accuracy_bars
from .palette import CLEAR, GRID, INK, empty, finish, series_of, wrap


def radar(rows: Sequence[Mapping[str, Any]], *, height: int = 400) -> go.Figure:
    """Draw ``rows`` with keys ``series, role, title, normalised`` (1 = as good as the task's own expert).

    Rows without a normalised value are left out; the experts are the ring at 1 by definition. With fewer than three
    tasks a radar has no area, so bars of the same numbers are drawn in its place.
    """
    rows = [row for row in rows if row.get("normalised") is not None]
    titles = list(dict.fromkeys(str(row["title"]) for row in rows))
    if not titles:
        return empty("Nothing to compare yet: no task has an expert to compare with.", height)
    if len(titles) < 3:
        return accuracy_bars(
            [{**row, "accuracy": row["normalised"], "low": None, "high": None} for row in rows], height=height
        )
    labels = _labels(titles)
    figure = go.Figure()
    top = 1.0
    for name, look in series_of(rows):
        mine = {str(row["title"]): row for row in rows if str(row["series"]) == name}
        values = [mine[title]["normalised"] if title in mine else None for title in titles]
        role = next(iter(mine.values())).get("role")
        top = max([top, *(v for v in values if v is not None)])
        figure.add_trace(
            go.Scatterpolar(
                name=name,
                r=[*values, values[0]],
                theta=[*labels, labels[0]],
                customdata=[*titles, titles[0]],
                mode="lines+markers",
                line={"color": look.color, "dash": look.dash, "width": 3 if role == "merged" else 2},
                marker={"symbol": look.marker, "size": 8 if role == "merged" else 6, "color": look.color},
                fill="toself" if role == "merged" else "none",
                fillcolor="rgba(0, 114, 178, 0.14)" if role == "merged" else CLEAR,
                hovertemplate="%{customdata}: %{r:.2f}<extra>" + name + "</extra>",
            )
        )
    figure.update_layout(
        polar={
            "bgcolor": CLEAR,
            "gridshape": "linear",
            "radialaxis": {
                "range": [0, math.ceil(top * 10 + 0.25) / 10],
                "tickvals": [0.25, 0.5, 0.75, 1.0],
                "ticktext": ["", "0.5", "", "1"],
                "gridcolor": GRID,
                "linecolor": CLEAR,
                "tickfont": {"size": 11, "color": INK},
                "angle": 90,
                "tickangle": 90,
            },
            "angularaxis": {
                "gridcolor": GRID,
                "linecolor": GRID,
                "tickfont": {"size": 12},
                "direction": "clockwise",
                "rotation": 90,
            },
        }
    )
    return finish(figure, height=height, margin={"l": 76, "r": 76, "t": 36, "b": 40})


def _labels(titles: Sequence[str]) -> list[str]:
    """Short labels that stay distinct: two tasks must not fall on one spoke."""
    labels = [wrap(title, 12) for title in titles]
    return labels if len(set(labels)) == len(labels) else list(titles)
