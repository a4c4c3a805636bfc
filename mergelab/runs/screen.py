"""The first screen: what the zoo's builder measured, read from disk, so that something real is there at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import TaskError
from ..recipe import Recipe
from ..zoo import open_zoo


@dataclass(frozen=True)
class FirstScreen:
    """A merge that was measured when the zoo was built; ``base``, ``experts`` and ``merged`` are evaluations as
    ``evaluate --json`` prints them, ``samples`` are pictures with the probabilities each model gave."""

    recipe: Recipe
    base: dict[str, Any]
    experts: dict[str, dict[str, Any]]
    merged: dict[str, Any]
    samples: tuple[dict[str, Any], ...]


def first_screen(zoo: str | Path = "starter", method: str = "task_arithmetic") -> FirstScreen:
    """The shipped measurement of ``method`` on ``zoo``; loads no weights. :class:`TaskError` if there is none."""
    opened = open_zoo(zoo)
    measured = opened.measured
    for merge in measured.get("evaluations", {}).get("merges", []):
        if merge["recipe"]["merge_method"] == method:
            return FirstScreen(
                recipe=Recipe.from_dict(merge["recipe"]),
                base=measured["evaluations"]["base"],
                experts=measured["evaluations"]["experts"],
                merged=merge["evaluation"],
                samples=tuple(measured.get("samples", ())),
            )
    raise TaskError(f"The zoo {opened.name!r} ships no measured merge by {method!r}; build it again to measure one.")
