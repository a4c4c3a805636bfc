"""The theorem lab on paper: how far task vectors are from gradients as steps add up, and what merging them gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from .palette import INK, Style, empty, finish, style

Row = Mapping[str, Any]

#: Optimisers in the order in which they have their styles, as they are called on the page.
NAMES = {"gd": "GD, full batch", "sgd": "SGD, mini-batches", "momentum": "GD with momentum", "adam": "Adam",
         "adamw": "AdamW"}  # fmt: skip
#: A logarithmic axis has no place for an error of 0; it is drawn here, below what float64 can tell apart.
FLOOR = 1e-17
_WAITING = "The theorem has not been looked at yet."


def theorem_errors(rows: Sequence[Row], *, part: str = "mean", height: int = 380) -> go.Figure:
    """Relative error ‖τ + kηg‖/‖kηg‖ against steps k on a logarithmic axis, one line an optimiser.

    ``part``: ``mean`` for the mean task vector and the mean gradient, or a task.
    """
    figure = _lines(rows, lambda row: _part(row, "error", part), "error %{customdata:.2g}", "relative error", height)
    for trace in figure.data:
        trace.customdata = trace.y
        trace.y = [None if value is None else max(value, FLOOR) for value in trace.y]
    if figure.data:
        figure.update_yaxes(type="log", exponentformat="power", rangemode="normal")
        figure.add_hline(y=1, line={"color": INK, "width": 1, "dash": "dot"})  # as long as what is predicted
    return figure


def theorem_cosines(rows: Sequence[Row], *, part: str = "mean", height: int = 380) -> go.Figure:
    """Cosine of the task vector and the negative gradient against steps; ``part`` as for :func:`theorem_errors`."""
    figure = _lines(rows, lambda row: _part(row, "cosine", part), "cosine %{y:.4f}", "cosine with −g", height)
    values = [value for trace in figure.data for value in trace.y if value is not None]
    if values:
        figure.update_yaxes(range=[min(0.0, *values) - 0.04, 1.04])
    return figure


def theorem_accuracy(rows: Sequence[Row], base: Row, *, part: str = "mean", height: int = 380) -> go.Figure:
    """Accuracy of base + mean task vector against the experts' steps, beside the base's (a level line).

    ``base``: the document's ``base``. ``part``: ``mean`` over tasks, or a task.
    """
    start = _accuracy(base, part)
    figure = _lines(rows, lambda row: _accuracy(row, part), "%{y:.1%}", "accuracy of the merge", height, start)
    if figure.data and start is not None:
        look, last = style("base"), max(row["steps"] for row in rows)
        figure.add_trace(
            go.Scatter(
                name="base", x=[0, last], y=[start, start], mode="lines",
                line={"color": look.color, "dash": look.dash, "width": 2}, hovertemplate="%{y:.1%}<extra>base</extra>",
            )
        )  # fmt: skip
        figure.update_yaxes(tickformat=".0%", rangemode="normal")
    return figure


def describe_theorem(document: Row) -> str:
    """What the document of a theorem lab shows: where the theorem holds, what breaks it, and where merging is best."""
    rows = {(row["optimiser"], row["steps"]): row for row in document.get("rows", ())}
    if not rows:
        return _WAITING
    parts = [_identity(rows), _adam(rows), _rate(rows, document["base"]), _merging(rows, document["base"])]
    return " ".join(part for part in parts if part)


def _identity(rows: Mapping[tuple[str, int], Row]) -> str:
    steps = sorted(k for name, k in rows if name == "gd")
    if not steps:
        return ""
    first, last = rows["gd", steps[0]]["mean"], rows["gd", steps[-1]]["mean"]
    text = f"After {_steps(steps[0])} of full-batch gradient descent the mean task vector is −kη times the mean "
    text += f"gradient to a relative error of {first['error']:.1g}"
    if len(steps) > 1:
        text += (
            f"; after {_steps(steps[-1])} it is {100 * last['error']:.2g}% off, with a cosine of {last['cosine']:.3f}"
        )
    return text + "."


def _adam(rows: Mapping[tuple[str, int], Row]) -> str:
    found = {name: rows[name, 1]["mean"]["cosine"] for name in ("adam", "adamw") if (name, 1) in rows}
    if not found:
        return ""
    told = " and ".join(f"{value:.2f} ({NAMES[name]})" for name, value in found.items())
    return f"The theorem is not about Adam: already its first step has a cosine of only {told} with the gradient."


def _rate(rows: Mapping[tuple[str, int], Row], base: Row) -> str:
    if ("gd", 1) not in rows or not base.get("loss"):
        return ""
    before, after = (_mean(row["loss"]) for row in (base, rows["gd", 1]))
    if after <= before:
        return ""
    return (
        f"At this rate one step of gradient descent raises the mean loss, from {before:.2f} to {after:.2f}; at a lower "
        "rate the first order lasts longer."
    )


def _merging(rows: Mapping[tuple[str, int], Row], base: Row) -> str:
    start = _accuracy(base, "mean")
    known = {key: value for key, row in rows.items() if (value := _accuracy(row, "mean")) is not None}
    if start is None or not known:
        return ""
    (name, k), best = max(known.items(), key=lambda item: (item[1], -item[0][1]))
    text = f"The base is right on {start:.1%}"
    first = known.get(("gd", 1))
    if first is not None:
        text += f", the merge after one step of gradient descent on {first:.1%}"
    if best <= start:
        return f"{text}; no merge here beats it."
    return f"{text}; the best merge here is after {_steps(k)} of {NAMES[name]}, {best:.1%}."


def _steps(k: int) -> str:
    return "one step" if k == 1 else f"{k} steps"


def _part(row: Row, key: str, part: str) -> float | None:
    value = row["mean"][key] if part == "mean" else row[key].get(part)
    return None if value is None else float(value)


def _accuracy(row: Row, part: str) -> float | None:
    shares = row.get("accuracy")
    if not shares:
        return None
    return _mean(shares) if part == "mean" else shares.get(part)


def _mean(values: Row) -> float:
    return math.fsum(values.values()) / len(values)


def _look(name: str) -> Style:
    return style("kept", list(NAMES).index(name)) if name in NAMES else style("base")


def _lines(  # noqa: PLR0917
    rows: Sequence[Row], value: Callable[[Row], float | None], hover: str, axis: str, height: int,
    start: float | None = None,
) -> go.Figure:  # fmt: skip
    """One line an optimiser over its steps, from ``start`` at 0 steps where given.

    Marks get smaller from line to line, so that of two that coincide both are seen.
    """
    if not any(value(row) is not None for row in rows):
        return empty(_WAITING, height)
    figure = go.Figure()
    for name in dict.fromkeys(row["optimiser"] for row in rows):
        mine = [(row["steps"], value(row)) for row in rows if row["optimiser"] == name]
        points = [*([] if start is None else [(0, start)]), *sorted(mine)]
        look, title = _look(name), NAMES.get(name, name)
        figure.add_trace(
            go.Scatter(
                name=title, x=[k for k, _ in points], y=[v for _, v in points], mode="lines+markers",
                line={"color": look.color, "dash": look.dash, "width": 2},
                marker={"symbol": look.marker, "size": 14 - 2 * len(figure.data), "color": look.color},
                hovertemplate="step %{x}: " + hover + "<extra>" + title + "</extra>",
            )
        )  # fmt: skip
    figure.update_xaxes(
        title={"text": "steps k", "font": {"size": 12}, "standoff": 6}, showgrid=False, rangemode="tozero",
        tickvals=sorted({int(row["steps"]) for row in rows} | ({0} if start is not None else set())),
    )  # fmt: skip
    figure.update_yaxes(title={"text": axis, "font": {"size": 12}, "standoff": 6})
    return finish(figure, height=height, margin={"b": 110}).update_layout(legend={"y": -0.24})
