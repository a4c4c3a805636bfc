"""What an evaluation found, as numbers, as the JSON contract and as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .head import TRAINED


@dataclass(frozen=True)
class Score:
    """One task: share right of ``n`` items, its 95 % interval, and the ratio to the expert on the same items."""

    seen: bool
    n: int
    accuracy: float
    interval: tuple[float, float]
    normalised: float | None
    head: str = TRAINED
    title: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "seen": self.seen,
            "n": self.n,
            "accuracy": self.accuracy,
            "interval": list(self.interval),
            "normalised": self.normalised,
        }


@dataclass(frozen=True)
class Average:
    """Unweighted means over tasks; None where there is nothing to average."""

    accuracy: float | None
    normalised: float | None

    def to_dict(self) -> dict[str, float | None]:
        return {"accuracy": self.accuracy, "normalised": self.normalised}


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` found. ``predictions`` holds the predicted labels int64 [n] per task."""

    suite: str
    source: str
    tasks: Mapping[str, Score]
    seen: Average
    unseen: Average
    data_used: str
    seconds: float
    split: str = "test"
    limit: int | None = None
    predictions: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The contract of ``evaluate --json``; accuracies between 0 and 1, null where there is no number."""
        return {
            "suite": self.suite,
            "source": self.source,
            "tasks": {name: score.to_dict() for name, score in self.tasks.items()},
            "seen": self.seen.to_dict(),
            "unseen": self.unseen.to_dict(),
            "data_used": self.data_used,
            "seconds": self.seconds,
        }

    def table(self) -> list[dict[str, Any]]:
        """One row per task, then the means: task, title, seen, n, accuracy, low, high, normalised, head."""
        rows: list[dict[str, Any]] = [
            {"task": name, "title": s.title or name, "seen": s.seen, "n": s.n, "accuracy": s.accuracy,
             "low": s.interval[0], "high": s.interval[1], "normalised": s.normalised, "head": s.head}
            for name, s in self.tasks.items()
        ]  # fmt: skip
        for title, group, seen in (("mean seen", self.seen, True), ("mean unseen", self.unseen, False)):
            if group.accuracy is not None:
                n = sum(s.n for s in self.tasks.values() if s.seen == seen)
                rows.append({"task": title, "title": title, "seen": seen, "n": n, "accuracy": group.accuracy,
                             "low": None, "high": None, "normalised": group.normalised, "head": ""})  # fmt: skip
        return rows
