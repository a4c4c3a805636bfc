"""One sentence beside each figure of a routed model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def describe_weights(
    rows: Sequence[str], columns: Sequence[str], matrix: Sequence[Sequence[float]], names: Sequence[str] | None = None
) -> str:
    """How much of the weight goes to the right expert. ``names``: what the rows are called in words."""
    said = list(names or rows)
    own = [(matrix[i][columns.index(row)], said[i]) for i, row in enumerate(rows) if row in columns]
    if not own:
        return "None of these tasks has an expert of its own, so there is no right one."
    mean, low = sum(value for value, _ in own) / len(own), min(own)
    text = f"On average {mean:.0%} of the weight goes to the task's own expert"
    if len(own) > 1:
        text += f", least on {low[1]} ({low[0]:.0%})"
    return text + ". A bright diagonal is a router that knows its tasks."


def describe_confusion(
    rows: Sequence[str], columns: Sequence[str], matrix: Sequence[Sequence[float]], names: Sequence[str] | None = None
) -> str:
    """Which task is taken for which other one most often."""
    said = dict(zip(rows, names or rows, strict=True))
    wrong = [
        (matrix[i][j], row, column)
        for i, row in enumerate(rows)
        for j, column in enumerate(columns)
        if row in columns and row != column
    ]
    if not wrong or max(wrong)[0] <= 0:
        return "The router's first choice is the right task every time."
    share, row, column = max(wrong)
    return f"Most often mistaken: {share:.0%} of {said[row]} is taken for {said.get(column, column)}."


def describe_rank(ranks: Sequence[str], accuracy: Sequence[float], megabytes: Sequence[float], chosen: int) -> str:
    """What the chosen rank keeps of the largest one's accuracy, and what it costs."""
    if not ranks:
        return ""
    best = accuracy[-1]
    kept = f", {accuracy[chosen] / best:.0%} of what nothing left out gives" if best else ""
    text = f"At rank {ranks[chosen]} the model is right on {accuracy[chosen]:.1%}{kept}, and takes "
    text += f"{megabytes[chosen]:.1f} MB"
    saved = megabytes[-1] / megabytes[chosen] if megabytes[chosen] else 1.0
    return text + (f", {saved:.1f} times less." if saved > 1.05 else ".")


def describe_storage(lines: Mapping[str, Sequence[float]], own: str) -> str:
    """What the routed model costs at the last number of tasks, beside the dearest and the cheapest."""
    if own not in lines:
        return ""
    count = len(lines[own])
    last = {name: values[-1] for name, values in lines.items()}
    dear, cheap = max(last, key=last.__getitem__), min(last, key=last.__getitem__)
    return (
        f"For {count} task{'s' if count > 1 else ''} the routed model takes {last[own]:.1f} MB; {dear} takes "
        f"{last[dear]:.1f} MB, {cheap} {last[cheap]:.1f} MB."
    )


def describe_latency(sizes: Sequence[int], rows: Mapping[str, Sequence[float | None]]) -> str:
    """The quickest mode that routes at the largest batch, against one plain pass."""
    if not sizes:
        return "Nothing has been measured yet."
    for place in reversed(range(len(sizes))):
        found = {m: v[place] for m, v in rows.items() if m not in ("plain", "static") and v[place] is not None}
        plain = rows.get("plain", [None] * len(sizes))[place]
        if plain and (len(found) > 1 or (found and place == 0)):
            break
    else:
        return "No mode that routes could be timed."
    best = min(found, key=lambda m: float(found[m] or 0))
    seconds, size = float(found[best] or 0), sizes[place]
    text = f"With {size} picture{'s' if size > 1 else ''} at once {best} is quickest: {1000 * seconds / size:.1f} ms "
    return text + f"a picture, {seconds / plain:.1f} times one plain pass of the shared model."


def describe_batch(items: Sequence[Mapping[str, Any]]) -> str:
    """How many of a mixed batch went to the right expert, and how many answers are right."""
    if not items:
        return ""
    routed = sum(item["chosen"] == item["task"] for item in items)
    right, groups = sum(bool(item["right"]) for item in items), len({item["group"] for item in items})
    return (
        f"{routed} of {len(items)} pictures are led to their own expert and {right} are read rightly; in the mode "
        f"group they need {groups} merges in place of {len(items)}."
    )
