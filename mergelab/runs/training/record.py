"""The record of a training run: plain data that is written after every round, shown on the page and shipped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ...training.recipe import TrainRecipe
from . import documents

FORMAT = "mergelab-training/1"
RECORD_FILE = "run.json"


@dataclass
class Record:
    """What a run did so far.

    ``points``: the model before the first round and after each: round, epochs a task, samples, seconds, accuracy and
    loss by task. ``rounds``: each round's courses by task (or ``all`` for joint training), cosines of its task vectors,
    their norms, the distance from the start, seconds. ``references``: accuracies of the base and of the suite's own
    experts on the same items.
    """

    recipe: TrainRecipe
    tasks: tuple[str, ...]
    titles: Mapping[str, str]
    status: str = "running"
    watch: Mapping[str, Any] = field(default_factory=dict)
    references: dict[str, dict[str, float]] = field(default_factory=dict)
    points: list[dict[str, Any]] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    costs: dict[str, Any] = field(default_factory=dict)
    data_used: str = ""
    findings: list[str] = field(default_factory=list)
    chosen: int | None = None

    @property
    def kind(self) -> str:
        return self.recipe.train

    @property
    def samples(self) -> int:
        """Items that training passes over so far, repeats counted."""
        return sum(int(log["samples"]) for round_ in self.rounds for log in round_["courses"].values())

    def losses(self) -> list[dict[str, float]]:
        """The loss by task that each round started from."""
        return [{name: log["start_loss"] for name, log in r["courses"].items()} for r in self.rounds]

    def to_dict(self) -> dict[str, Any]:
        """Plain data; floats to six digits."""
        out = {
            "format": FORMAT, "kind": self.kind, "recipe": self.recipe.to_dict(), "hash": self.recipe.hash,
            "status": self.status, "tasks": list(self.tasks), "titles": dict(self.titles), "watch": dict(self.watch),
            "references": self.references, "points": self.points, "rounds": self.rounds, "costs": self.costs,
            "data_used": self.data_used, "findings": self.findings, "chosen": self.chosen,
        }  # fmt: skip
        return plain(out)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = RECORD_FILE) -> Record:
        """From :meth:`to_dict`; CheckpointError says what a damaged record lacks."""
        documents.checked(data, FORMAT, where, "start the run anew")
        try:
            return cls(
                TrainRecipe.from_dict(data["recipe"]), tuple(map(str, data["tasks"])), dict(data["titles"]),
                str(data["status"]), dict(data["watch"]), {k: dict(v) for k, v in data["references"].items()},
                [dict(p) for p in data["points"]], [dict(r) for r in data["rounds"]], dict(data["costs"]),
                str(data["data_used"]), [str(f) for f in data["findings"]], data.get("chosen"),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{where} is damaged ({error!r}); start the run anew.") from None

    @classmethod
    def read(cls, path: str | Path) -> Record:
        """From a run's folder, or a record's file."""
        path = Path(path).expanduser()
        path = path / RECORD_FILE if path.is_dir() else path
        if not path.is_file():
            raise CheckpointError(f"There is no training run at {path.parent}: it has no {path.name}.")
        data = documents.read(path, FORMAT, "start the run anew")
        return cls.from_dict(data, path.name)

    def write(self, folder: Path) -> None:
        """Into the run's folder, in one step."""
        documents.write(self.to_dict(), folder / RECORD_FILE, overwrite=True)


def mean(values: Mapping[str, float]) -> float:
    return math.fsum(values.values()) / len(values)


def plain(value: Any) -> Any:
    """Plain data for JSON: floats to six digits, what is not finite as null."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value
