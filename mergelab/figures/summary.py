"""One sentence beside each figure: what there is to see, made from the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def describe_result(rows: Sequence[Mapping[str, Any]], *, series: str) -> str:
    """What a merged model keeps of its experts: how many tasks, the best and the worst, against the base.

    ``rows`` as for :func:`mergelab.figures.radar`, with the base's rows among them under the role ``base``.
    """
    mine = [row for row in rows if row["series"] == series and row.get("normalised") is not None]
    if not mine:
        return "No task here has an expert to compare with, so only plain accuracies are shown."
    base = {
        row["task"]: row["normalised"]
        for row in rows
        if row.get("role") == "base" and row.get("normalised") is not None
    }
    mean = sum(row["normalised"] for row in mine) / len(mine)
    best, worst = max(mine, key=lambda row: row["normalised"]), min(mine, key=lambda row: row["normalised"])
    text = f"One model now keeps {mean:.0%} of what {len(mine)} experts can do"
    compared = [row for row in mine if row["task"] in base]
    if compared:
        won = sum(row["normalised"] > base[row["task"]] for row in compared)
        before = sum(base[row["task"]] for row in compared) / len(compared)
        text += f" (the base alone: {before:.0%}) and beats the base on {won} of {len(compared)} tasks"
    if best["title"] != worst["title"]:
        text += f"; best on {best['title']} ({best['normalised']:.0%}),"
        text += f" worst on {worst['title']} ({worst['normalised']:.0%})"
    return text + "."


def describe_prediction(rows: Sequence[Mapping[str, Any]], truth: str | None = None) -> str:
    """Who says what of one picture. ``rows`` as for :func:`mergelab.figures.probability_bars`."""
    said: dict[str, tuple[str, float]] = {}
    for row in rows:
        name, value = str(row["series"]), float(row["probability"])
        if name not in said or value > said[name][1]:
            said[name] = (str(row["class"]), value)
    if not said:
        return "No prediction yet."
    parts = [f"{name} says “{label}” ({value:.0%})" for name, (label, value) in said.items()]
    text = "; ".join(parts) + "."
    if truth is None:
        return text
    right = [name for name, (label, _) in said.items() if label == truth]
    verdict = "nobody is right" if not right else "right: " + ", ".join(right)
    return f"It is “{truth}”: {text} So {verdict}."


def describe_cosines(names: Sequence[str], matrix: Sequence[Sequence[float]]) -> str:
    """Which two task vectors are most and least alike."""
    pairs = [(matrix[i][j], names[i], names[j]) for i in range(len(names)) for j in range(i + 1, len(names))]
    if not pairs:
        return "One task vector has nothing to be compared with."
    high, low = max(pairs), min(pairs)
    mean = sum(value for value, _, _ in pairs) / len(pairs)
    text = f"Most alike are {high[1]} and {high[2]} (cosine {high[0]:.2f})"
    if len(pairs) > 1:
        text += f", least alike {low[1]} and {low[2]} ({low[0]:.2f}); the mean over {len(pairs)} pairs is {mean:.2f}"
    return text + ". Near 0 means that two experts changed the base in unrelated directions."


def describe_norms(layers: Sequence[str], series: Mapping[str, Sequence[float | None]]) -> str:
    """Which expert moved furthest, and in which layer."""
    found = [
        (v, name, layer)
        for name, values in series.items()
        for v, layer in zip(values, layers, strict=True)
        if v is not None
    ]
    if not found:
        return "There is no layer to show."
    value, name, layer = max(found)
    text = f"The largest change is that of {name} in {layer} (norm {value:.3g})."
    return text + " Large norms pull a plain sum towards their expert."


def describe_conflict(layers: Sequence[str], rates: Sequence[float | None], overall: float | None = None) -> str:
    """Where experts disagree most about the sign of a change."""
    found = [(rate, layer) for rate, layer in zip(rates, layers, strict=True) if rate is not None]
    if not found:
        return "There is no layer to show."
    rate, layer = max(found)
    text = f"The experts disagree most in {layer}: {rate:.0%} of its weights are pulled both up and down"
    if overall is not None:
        text += f" ({overall:.0%} over the whole model)"
    return text + ". This is the conflict for which TIES elects a sign."
