"""One sentence of what there is to see in the figures of methods that need data."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence


def describe_path(
    steps: Sequence[int], objective: Sequence[float | None], accuracy: Sequence[float | None], shown: int,
    best: int | None,
) -> str:  # fmt: skip
    """What is shown, how far J fell, and whether accuracy followed it."""
    here = accuracy[shown]
    text = f"Shown: {_times(steps[shown])}"
    text += f", {here:.1%} on validation." if here is not None else ", which could not be measured."
    known = [value for value in objective if value is not None]
    if known and known[0]:
        share = known[-1] / known[0]
        down = all(b <= a * (1 + 1e-6) for a, b in itertools.pairwise(known))
        text += f" J {'falls all the way' if down else 'goes'}, to {share:.1%} of its start after {steps[-1]}"
    values = [value for value in accuracy if value is not None]
    if len(values) > 1:
        falls = any(b < a - 1e-9 for a, b in itertools.pairwise(values))
        rises = any(b > a + 1e-9 for a, b in itertools.pairwise(values))
        text += (
            "; accuracy does not follow it: it rises and falls"
            if falls and rises
            else "; accuracy only falls, although J does what it should"
            if falls
            else "; here accuracy rises with every snapshot, or stays"
        )
    text = text if text.endswith(".") else text + "."
    if best is not None and accuracy[best] is not None:
        text += f" Chosen on validation: {_times(steps[best])}, {accuracy[best]:.1%}."
    return text


def describe_change(rows: Mapping[str, float]) -> str:
    """Where the weights moved most; ``rows``: layer -> mean ‖x − x0‖/‖τ‖."""
    if not rows or not any(rows.values()):
        return "Nothing moved: these are the weights that the merge starts from."
    most, least = max(rows, key=rows.__getitem__), min(rows, key=rows.__getitem__)
    return (
        f"The weights moved most in {most} ({rows[most]:.2f} of the task vectors' length) and least in {least} "
        f"({rows[least]:.2f})."
    )


def describe_coefficients(tasks: Sequence[str], values: Sequence[Sequence[float]], step: int) -> str:
    """Who got most and least at a step; ``values[task][layer]``."""
    means = {task: sum(row) / len(row) for task, row in zip(tasks, values, strict=True)}
    most, least = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
    spread = max(map(max, values)) - min(map(min, values))
    if spread < 1e-9:
        return f"Step {step}: every coefficient is {means[most]:.3f}."
    return (
        f"Step {step}: {most} has the largest mean coefficient ({means[most]:.3f}), {least} the smallest "
        f"({means[least]:.3f}); over all layers they span {spread:.3f}."
    )


def describe_learning(entropy: Sequence[float], confidence: Sequence[float], findings: Sequence[str]) -> str:
    """Whether predictions became sure, and whether they collapsed."""
    if not entropy:
        return "No step was made."
    text = (
        f"The mean entropy goes from {entropy[0]:.3f} to {entropy[-1]:.3f}, the mean largest probability from "
        f"{confidence[0]:.2f} to {confidence[-1]:.2f}. "
    )
    return text + (" ".join(findings) or "No task collapsed onto one class.")


def describe_bias(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """How far the correction brought features back."""
    if not before:
        return ""
    share = sum(after[task] / before[task] if before[task] else 1.0 for task in before) / len(before)
    worst = max(after, key=after.__getitem__)
    return (
        f"The correction leaves {share:.0%} of the distance to each expert's features on held-out pictures; the most "
        f"is left on {worst} ({after[worst]:.3f})."
    )


def describe_calibration(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """What calibrated features did to accuracies, on average and task by task."""
    if not before:
        return ""
    means = [sum(values.values()) / len(values) for values in (before, after)]
    change = {task: after[task] - before[task] for task in before}
    up, down = (sum(sign * value > 1e-9 for value in change.values()) for sign in (1, -1))
    text = (
        f"On average {means[0]:.1%} before and {means[1]:.1%} after; of {len(before)} tasks {up} went up and {down} "
        "went down."
    )
    most, least = max(change, key=change.__getitem__), min(change, key=change.__getitem__)
    if up:
        text += f" {most} gains most ({100 * change[most]:+.1f} points)."
    if down:
        text += f" {least} loses most ({100 * change[least]:+.1f} points)."
    return text


def _times(k: int) -> str:
    return "no iterations (the init)" if k == 0 else f"{k} iteration{'s' if k != 1 else ''}"
