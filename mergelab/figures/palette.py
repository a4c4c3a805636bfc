"""One look for every figure: the Okabe-Ito colours with a dash, a marker and a pattern each.

Okabe and Ito's eight colours stay apart for every common kind of colour blindness. Their black and their yellow are
replaced by a mid-grey and a darker yellow, since those two vanish on a dark and on a white page.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

#: Text, grid and axis colours that read on white and on near-black.
INK = "#808892"
GRID = "rgba(128, 136, 146, 0.32)"
CLEAR = "rgba(0, 0, 0, 0)"
FONT = "IBM Plex Sans, system-ui, sans-serif"


@dataclass(frozen=True)
class Style:
    """How one series is drawn wherever it appears."""

    color: str
    dash: str
    marker: str
    pattern: str


_ROLES: Mapping[str, Style] = {
    "base": Style("#8C8C8C", "dot", "square", "."),
    "experts": Style("#009E73", "dash", "diamond", "/"),
    "merged": Style("#0072B2", "solid", "circle", ""),
}
_KEPT: Sequence[Style] = (
    Style("#D55E00", "dashdot", "triangle-up", "x"),
    Style("#CC79A7", "longdash", "cross", "\\"),
    Style("#E69F00", "longdashdot", "x", "-"),
    Style("#56B4E9", "dash", "star", "|"),
    Style("#B3A100", "dot", "hexagon", "+"),
)
#: For figures whose series are experts, not roles.
CYCLE: Sequence[Style] = (*_ROLES.values(), *_KEPT)


def style(role: str, index: int = 0) -> Style:
    """The style of a role (``base``, ``experts``, ``merged``), else of the ``index``-th kept or counted series."""
    if role in _ROLES:
        return _ROLES[role]
    return (_KEPT if role == "kept" else CYCLE)[index % len(_KEPT if role == "kept" else CYCLE)]


def short(text: str, limit: int = 12) -> str:
    """``text`` cut to ``limit`` characters, so that labels fit a phone."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def wrap(text: str, width: int = 12) -> str:
    """``text`` over several lines of about ``width`` characters, broken at spaces and after hyphens."""
    lines = [""]
    for part in re.split(r"(?<=[ \-])", text):
        if lines[-1] and len(lines[-1]) + len(part.strip()) > width:
            lines.append("")
        lines[-1] += part
    return "<br>".join(short(line.strip(), width + 2) for line in lines[:3])


def series_of(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, Style]]:
    """The series named in ``rows`` in their order, each with its style."""
    found: dict[str, Style] = {}
    kept = 0
    for row in rows:
        name = str(row["series"])
        if name in found:
            continue
        role = str(row.get("role", "kept"))
        found[name] = style(role, kept)
        kept += role not in _ROLES
    return list(found.items())


def finish(
    figure: go.Figure, *, height: int, legend: bool = True, margin: Mapping[str, int] | None = None
) -> go.Figure:
    """Give a figure the common look: transparent, grey ink, legend below, no title, sized by its container."""
    figure.update_layout(
        template="none",
        autosize=True,
        height=height,
        margin={"l": 48, "r": 24, "t": 28, "b": 48, **(margin or {})},
        paper_bgcolor=CLEAR,
        plot_bgcolor=CLEAR,
        font={"color": INK, "family": FONT, "size": 13},
        showlegend=legend,
        legend={"orientation": "h", "x": 0.5, "xanchor": "center", "y": -0.12, "yanchor": "top"},
        hoverlabel={"font": {"family": FONT}},
        modebar={"bgcolor": CLEAR, "color": INK, "activecolor": "#1C82C4"},
    )
    figure.update_xaxes(gridcolor=GRID, zerolinecolor=GRID, linecolor=GRID, automargin=True)
    figure.update_yaxes(gridcolor=GRID, zerolinecolor=GRID, linecolor=GRID, automargin=True)
    return figure


def empty(text: str, height: int = 240) -> go.Figure:
    """A figure that says why there is nothing to draw."""
    figure = go.Figure()
    figure.add_annotation(text=text, x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return finish(figure, height=height, legend=False)
