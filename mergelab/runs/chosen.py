"""What a selection on validation found: every point of the grid with its accuracies, and the one that was taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..recipe import Recipe

#: Means this close are equal: sums of the same accuracies in another order.
_EQUAL = 1e-9


@dataclass(frozen=True)
class GridPoint:
    """One point: its values, the mean accuracy over tasks (None: it could not be measured, see ``error``).

    ``tasks``: accuracy by task, the mean over seeds; ``by_seed``: the mean over tasks for every seed.
    """

    parameters: Mapping[str, Any]
    accuracy: float | None
    tasks: Mapping[str, float] = field(default_factory=dict)
    by_seed: tuple[float, ...] = ()
    error: str = ""

    def to_dict(self) -> dict[str, Any]:
        out: dict[str, Any] = {
            "parameters": dict(self.parameters), "accuracy": self.accuracy, "tasks": dict(self.tasks),
            "by_seed": list(self.by_seed),
        }  # fmt: skip
        return {**out, "error": self.error} if self.error else out


@dataclass(frozen=True)
class Chosen:
    """The recipe with the values that did best, and all that led to them.

    ``scores`` are in the grid's order, ``best`` is the index of the one taken. ``oracle``: test data chose, so the
    numbers say what is possible and nothing about what would have been found. ``items``: pictures a task, where known.
    ``warnings``: sentences about the statistics that were read (mixed estimates, splits, numbers of examples).
    """

    recipe: Recipe
    parameters: Mapping[str, Any]
    split: str
    grid: Mapping[str, tuple[Any, ...]]
    scores: tuple[GridPoint, ...]
    best: int
    why: str
    seconds: float
    oracle: bool = False
    limit: int | None = None
    suite: str | None = None
    tasks: tuple[str, ...] = ()
    items: Mapping[str, int] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data: what a run keeps and ``choose --json`` prints."""
        return {
            "recipe": self.recipe.to_dict(),
            "parameters": dict(self.parameters),
            "split": self.split,
            "oracle": self.oracle,
            "limit": self.limit,
            "suite": self.suite,
            "tasks": list(self.tasks),
            "items": dict(self.items),
            "seeds": list(self.seeds),
            "grid": {name: list(values) for name, values in self.grid.items()},
            "scores": [point.to_dict() for point in self.scores],
            "best": self.best,
            "why": self.why,
            "seconds": self.seconds,
            "warnings": list(self.warnings),
        }


def pick(scores: tuple[GridPoint, ...]) -> int | None:
    """The index of the highest mean accuracy; among equal ones the first. None where nothing could be measured."""
    known = [point.accuracy for point in scores if point.accuracy is not None]
    if not known:
        return None
    top = max(known) - _EQUAL
    return next(i for i, point in enumerate(scores) if point.accuracy is not None and point.accuracy >= top)


def reason(scores: tuple[GridPoint, ...], best: int, split: str, tasks: int) -> str:
    """One or two sentences that say why this point was taken."""
    taken = scores[best]
    assert taken.accuracy is not None
    equal = sum(p.accuracy is not None and p.accuracy >= taken.accuracy - _EQUAL for p in scores)
    over = f"{tasks} task{'s' if tasks != 1 else ''}"
    text = f"{values_text(taken.parameters)} has the highest mean accuracy on {split}, {100 * taken.accuracy:.2f} %"
    text += f" over {over}, of {len(scores)} grid point{'s' if len(scores) != 1 else ''}"
    if equal > 1:
        text += f"; it is the first of {equal} equal ones"
    text += "."
    still = scores[_least(scores, best)]
    if still is not taken and still.accuracy is not None:
        text += f" At {values_text(still.parameters)} it is {100 * still.accuracy:.2f} %."
    failed = [point for point in scores if point.error]
    if failed:
        text += f" {len(failed)} could not be measured, such as {values_text(failed[0].parameters)}."
    return text


def _least(scores: tuple[GridPoint, ...], best: int) -> int:
    """What the taken point is compared with: no iterations and else the same values, or the grid's first point."""
    same = {name: value for name, value in scores[best].parameters.items() if name != "iterations"}
    still = {"iterations": 0, **same}
    return next((i for i, point in enumerate(scores) if dict(point.parameters) == still), 0)


def values_text(values: Mapping[str, Any]) -> str:
    """``iterations = 5, lambda = 0.2``."""
    return ", ".join(f"{name} = {value:g}" if isinstance(value, float) else f"{name} = {value}"
                     for name, value in values.items())  # fmt: skip
