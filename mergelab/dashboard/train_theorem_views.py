"""From the document of a theorem lab (plain data) to its figures, tables and sentences. Pure functions."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping
from typing import Any

from .. import figures
from ..figures.theorem import NAMES
from . import views
from .data_views import time_text
from .train_look_views import DAMAGED

Document = Mapping[str, Any]
MEAN = "mean"
#: Pictures whose gradient is taken a second in float64, of a small model on two cores.
_PER_SECOND = 8.0
_HEAD = ("Optimiser", "k", "Error", "Cosine", "Loss", "Acc. %")
_DAMAGED = "This recorded lab is damaged, so it is not drawn."


def parts(document: Document | None) -> list[tuple[str, str]]:
    """(title, name) of what can be drawn: the mean task vector, or a task's."""
    titles = (document or {}).get("titles")
    known = titles.items() if isinstance(titles, Mapping) else ()
    return [("mean of the tasks", MEAN), *((str(title), str(name)) for name, title in known)]


def everything(document: Document | None, part: str = MEAN) -> list[Any]:
    """Sentence, three figures, table of courses, what else was found."""
    if not document:
        return ["", None, None, None, "", ""]
    try:
        return [
            figures.describe_theorem(document), *drawings(document, part), courses(document, part),
            joint(document) + rounding(document) + files(document),
        ]  # fmt: skip
    except DAMAGED:
        return ["", None, None, None, views.note(_DAMAGED, "error"), ""]


def drawings(document: Document, part: str) -> list[Any]:
    """Errors, cosines, accuracies against steps."""
    rows = document["rows"]
    accuracy = figures.theorem_accuracy(rows, document["base"], part=part, height=340)
    return [
        views.plot(figures.theorem_errors(rows, part=part, height=340), "theorem-errors"),
        views.plot(figures.theorem_cosines(rows, part=part, height=340), "theorem-cosines"),
        views.plot(accuracy, "theorem-accuracy"),
    ]  # fmt: skip


def courses(document: Document, part: str = MEAN) -> str:
    """Optimisers by steps: of the task vector that the figures are of, and what merging all of them gives."""
    base, name = document["base"], {key: title for title, key in parts(document)}.get(part, part)
    body = [["the base", "0", "–", "–", *_reached(base, part)]]
    for row in document["rows"]:
        mean = part == MEAN
        error = row["mean"]["error"] if mean else row["error"][part]
        cosine = row["mean"]["cosine"] if mean else row["cosine"][part]
        title = html.escape(str(NAMES.get(row["optimiser"], row["optimiser"])))
        body.append([title, str(row["steps"]), f"<b>{error:.2g}</b>", views.decimals(cosine), *_reached(row, part)])
    items = sorted(set(document["items"].values()))
    caption = (
        f"{name[:1].upper()}{name[1:]}: τ against −kη times the gradient of {items[0]} pictures a task; then loss and "
        "accuracy in % of the merge of all tasks"
    )
    rates = {str(NAMES.get(row["optimiser"], row["optimiser"])): f"{row['rate']:g}" for row in document["rows"]}
    told = "; ".join(f"{title} {rate}" for title, rate in rates.items())
    return views.table(_HEAD, body, caption) + f'<p class="ml-cost">{html.escape(f"Rates η: {told}.")}</p>'


def joint(document: Document) -> str:
    """How far joint gradient descent is from merging at the end, and from merging after every step."""
    if not document["joint"]:
        return ""
    body = [[str(row["steps"]), f"{row['apart']:.2g}", f"{row['rounds']:.2g}"] for row in document["joint"]]
    head = ["Steps", "Merged once, at the end", "Merged after every step"]
    return views.table(head, body, "Distance from joint gradient descent, as a share of the way that it went")


def rounding(document: Document) -> str:
    """What float32 leaves of one step, and what weight decay is within AdamW's first one, in words."""
    told = "; ".join(f"{_range(row['float32'])} at η = {row['rate']:g}" for row in document["rounding"])
    text = f"All of it is in float64. In float32 rounding alone makes one step this wrong: {told}." if told else ""
    decay = document.get("decay")
    if decay:
        text += (
            f" AdamW’s weight decay is the same vector in every task’s first step, so the mean keeps all of it: "
            f"{decay['mean']:.2%} of the mean task vector’s length."
        )
    used = f"{document['data_used']}; {document['parameters']:,} weights; {document['seconds']:.0f} s."
    return views.note(text.strip()) + views.note(f"Data used: {used}")


def files(document: Document) -> str:
    link = views.link("All of it as JSON", json.dumps(document), "mergelab-theorem.json", "application/json")
    return f'<p class="ml-files">{link}<span>Figures: the camera button saves a PNG.</span></p>'


def gradients(tasks: int, images: int, optimisers: int, last: int, *, gd: bool) -> int:
    """Pictures whose gradient is taken in a lab of one's own."""
    return tasks * images * (1 + optimisers * (1 + last) + 2 * last * gd)


def cost_line(count: int) -> str:
    return views.note(
        f"Gradients of {count:,} pictures in float64: about {time_text(count / _PER_SECOND)} on two cores."
    )


def _reached(row: Mapping[str, Any], part: str) -> list[str]:
    return [views.decimals(_of(row["loss"], part), 2), views.percent(_of(row["accuracy"], part))]


def _of(values: Mapping[str, float] | None, part: str) -> float | None:
    if not values:
        return None
    return math.fsum(values.values()) / len(values) if part == MEAN else values[part]


def _range(values: Mapping[str, float]) -> str:
    return f"{min(values.values()):.2g} to {max(values.values()):.2g}"
