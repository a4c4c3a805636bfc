"""Figures of training runs: accuracy against epochs a task, with the levels of the base and of the experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from .palette import GRID, Style, empty, finish, series_of, short

#: Least distance of two labels at the end of their lines, as a share of the axis.
_APART = 0.055
#: Room at the right for those labels, in pixels.
_LABELS = 92
#: Points that stand alone share a colour that no line has; each series has its own symbol.
_POINT = "#B3A100"
_SYMBOLS = ("star", "triangle-down", "bowtie", "square", "hourglass", "pentagon")


def training_curves(
    rows: Sequence[Mapping[str, Any]], *, levels: Sequence[Mapping[str, Any]] = (),
    points: Sequence[Mapping[str, Any]] = (), until: float = 0.0, shown: float | None = None, height: int = 430,
) -> go.Figure:  # fmt: skip
    """Draw ``rows`` with keys ``series, role, task, epochs, accuracy``: a bold line a series where ``task`` is None
    (the mean), thin ones with a name at their end for tasks.

    ``levels`` (``series, role, accuracy``) are drawn over the whole width, ``points`` (``series, epochs, accuracy``,
    ``open``: hollow) as markers alone. ``until``: the epochs that are still to come; ``shown``: the epochs
    that the page shows now.
    """
    if not rows:
        return empty("The curve starts with the first round.", height)
    figure = go.Figure()
    last = max([until, *(float(row["epochs"]) for row in (*rows, *points))])
    looks = dict(series_of(rows))
    for row in levels:
        figure.add_trace(_level(row, last))
    names = list(dict.fromkeys(str(row["series"]) for row in rows))
    ends = []
    for name in names:  # thin lines first, so that the mean lies above them
        mine = [row for row in rows if row["series"] == name]
        for task in dict.fromkeys(row["task"] for row in mine if row["task"] is not None):
            line = [row for row in mine if row["task"] == task]
            figure.add_trace(_thin(name, str(task), line, looks[name]))
            ends.append((str(task), float(line[-1]["accuracy"]), looks[name]))
    for name in names:
        line = [row for row in rows if row["series"] == name and row["task"] is None]
        if line:
            figure.add_trace(_bold(name, line, looks[name]))
    alone = list(dict.fromkeys(str(row["series"]) for row in points))
    for at, name in enumerate(alone):
        figure.add_trace(_marks(name, [row for row in points if row["series"] == name], _SYMBOLS[at % len(_SYMBOLS)]))
    if shown is not None:
        figure.add_vline(x=shown, line={"color": GRID, "width": 2})
    top = max(1.0, *(float(row["accuracy"]) for row in (*rows, *points)))
    for text, y, look in spread(ends, _APART * top):
        figure.add_annotation(
            text=short(text, 14), x=1.01, xref="paper", y=y, xanchor="left", showarrow=False,
            font={"size": 11, "color": look.color},
        )  # fmt: skip
    figure.update_xaxes(
        title={"text": "epochs a task", "font": {"size": 12}, "standoff": 6}, showgrid=False, zeroline=False,
        range=[-0.03 * last, 1.03 * last] if last else None,
    )  # fmt: skip
    figure.update_yaxes(
        title={"text": "accuracy", "font": {"size": 12}, "standoff": 6}, tickformat=".0%", range=[0, 1.04 * top]
    )
    below = 20 * -(-(len(levels) + len(looks) + len(alone)) // 2)  # rows of the legend on a phone
    right = _LABELS if ends else 16
    figure = finish(figure, height=height + below, margin={"l": 58, "r": right, "t": 12, "b": 52 + below})
    return figure.update_layout(legend={
        "y": -46 / (height - 64), "font": {"size": 11}, "entrywidth": 0.46, "entrywidthmode": "fraction",
    })  # fmt: skip


def _level(row: Mapping[str, Any], last: float) -> go.Scatter:
    ((name, look),) = series_of([row])
    return go.Scatter(
        name=name, x=[0, last], y=[row["accuracy"]] * 2, mode="lines",
        line={"color": look.color, "dash": look.dash, "width": 2}, hovertemplate=f"{name}: %{{y:.1%}}<extra></extra>",
    )  # fmt: skip


def _bold(name: str, line: Sequence[Mapping[str, Any]], look: Style) -> go.Scatter:
    return go.Scatter(
        name=name, **_points(line), mode="lines+markers", line={"color": look.color, "dash": look.dash, "width": 3.5},
        marker={"symbol": look.marker, "size": 8, "color": look.color},
        hovertemplate="%{x:g} epochs: %{y:.1%}<extra>" + name + ", mean</extra>",
    )  # fmt: skip


def _thin(name: str, task: str, line: Sequence[Mapping[str, Any]], look: Style) -> go.Scatter:
    return go.Scatter(
        name=f"{name}, {task}", **_points(line), mode="lines", showlegend=False, opacity=0.6,
        line={"color": look.color, "dash": look.dash, "width": 1.3},
        hovertemplate="%{x:g} epochs: %{y:.1%}<extra>" + f"{name}, {task}</extra>",
    )  # fmt: skip


def _marks(name: str, line: Sequence[Mapping[str, Any]], symbol: str) -> go.Scatter:
    hollow = "-open" if any(row.get("open") for row in line) else ""
    return go.Scatter(
        name=name, **_points(line), mode="markers",
        marker={"symbol": symbol + hollow, "size": 10, "color": _POINT, "line": {"width": 1, "color": _POINT}},
        hovertemplate="%{x:g} epochs: %{y:.1%}<extra>" + name + "</extra>",
    )  # fmt: skip


def _points(line: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"x": [row["epochs"] for row in line], "y": [row["accuracy"] for row in line]}


def spread(ends: Sequence[tuple[str, float, Any]], apart: float) -> list[tuple[str, float, Any]]:
    """The same labels, moved up where two would lie on each other, and all back down by half of what the stack grew."""
    placed: list[tuple[str, float, Any]] = []
    group: list[tuple[str, float, Any]] = []

    def close() -> None:
        if not group:
            return
        middle = sum(y for _, y, _ in group) / len(group)
        first = middle - apart * (len(group) - 1) / 2
        placed.extend((text, first + apart * place, look) for place, (text, _, look) in enumerate(group))
        group.clear()

    for label in sorted(ends, key=lambda end: end[1]):
        if group:
            middle = sum(y for _, y, _ in group) / len(group)
            if label[1] - (middle + apart * (len(group) - 1) / 2) >= apart:
                close()
        group.append(label)
    close()
    return placed


# ---- in words --------------------------------------------------------------------------------------------------------


def describe_training(
    rows: Sequence[Mapping[str, Any]], *, shown: float, experts: float | None = None,
    points: Sequence[Mapping[str, Any]] = (),
) -> str:  # fmt: skip
    """What the first series of ``rows`` reaches at ``shown`` epochs a task, beside the second at as many and the best
    of ``points``; ``experts`` is the mean level of the experts."""
    means = [row for row in rows if row["task"] is None]
    if not means:
        return ""
    first, *others = dict.fromkeys(str(row["series"]) for row in means)
    here = _at(means, first, shown)
    start = next(float(row["accuracy"]) for row in means if row["series"] == first)
    if not shown or here is None:
        return f"Before the first round: {start:.1%} of the pictures are read rightly, on average over the tasks."
    share = f", {here / experts:.0%} of what the experts do" if experts else ""
    text = (
        f"After {shown:g} {'epoch' if shown == 1 else 'epochs'} a task, {first}: {here:.1%} right on average{share}; "
    )
    text += f"it started from {start:.1%}."
    beside = _at(means, others[0], shown) if others else None
    if beside is not None:
        name = others[0][:1].upper() + others[0][1:]
        text += f" {name}: {beside:.1%}, {_gap(beside - here)}, after as many pictures."
    once = [row for row in points if abs(float(row["epochs"]) - shown) < 1e-6]
    if once:
        best = max(once, key=lambda row: float(row["accuracy"]))
        text += f" The best merge that is made once: {best['accuracy']:.1%} ({best['series']})."
    return text


def _gap(more: float) -> str:
    return "as much" if abs(more) < 0.0005 else f"{100 * abs(more):.1f} points {'more' if more > 0 else 'less'}"


def _at(means: Sequence[Mapping[str, Any]], name: str, epochs: float) -> float | None:
    """A series' mean at so many epochs; None where it has not come there."""
    found = [float(r["accuracy"]) for r in means if r["series"] == name and abs(float(r["epochs"]) - epochs) < 1e-6]
    return found[0] if found else None
