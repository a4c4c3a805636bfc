"""Which statistics belong to which model: by the hash of the weights, and never by name alone where they differ."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ..checkpoints import Checkpoint
from ..errors import StatisticsError
from .block import KINDS
from .task import TaskStatistics


class Matched(dict[str, TaskStatistics]):
    """Model name -> its statistics, in the models' order; ``warnings`` are sentences for a person."""

    def __init__(self, found: Mapping[str, TaskStatistics], warnings: Collection[str] = ()) -> None:
        super().__init__(found)
        self.warnings = tuple(warnings)


def matched(found: Mapping[str, TaskStatistics], models: Mapping[str, Checkpoint], kinds: Collection[str]) -> Matched:
    """The statistics (by task) of every model (by name): the one collected from these very weights.

    Among several of the same weights the one with the model's name is taken. Statistics that do not say which weights
    they are of ("" as hash) go by name. Raises StatisticsError for a model without statistics, for statistics of its
    name that were collected from other weights (both hashes' first 12 digits are named), and for a kind that none of a
    task's tensors has. Different Fisher estimates, data splits or numbers of examples come back as warnings.
    """
    taken = {name: _of(name, model, found) for name, model in models.items()}
    for name, statistics in taken.items():
        missing = [kind for kind in KINDS if kind in kinds and kind not in statistics.kinds]
        if missing:
            raise StatisticsError(
                f"{statistics.where}: they hold only {_listed(statistics.kinds)}, and the model {name!r} needs "
                f"{_listed(missing)}; collect them again with --kinds "
                f"{','.join(dict.fromkeys([*statistics.kinds, *missing]))}."
            )
    return Matched(taken, _warnings(taken, kinds))


def _of(name: str, model: Checkpoint, found: Mapping[str, TaskStatistics]) -> TaskStatistics:
    if any(statistics.weights_hash for statistics in found.values()):
        same = {task: s for task, s in found.items() if s.weights_hash == model.weights_hash}
        if name in same or len(same) == 1:
            return same.get(name) or next(iter(same.values()))
        if same:
            raise StatisticsError(
                f"The model {name!r} has the weights of {len(same)} statistics, of the tasks {_listed(same)}: "
                "name the model after one of them."
            )
    statistics = found.get(name)
    if statistics is None:
        raise StatisticsError(
            f"There are no statistics of the model {name!r}: there are {_some(found)}. "
            "Collect them from it with python -m mergelab stats."
        )
    if statistics.weights_hash:
        raise StatisticsError(
            f"{statistics.where}: they were collected from other weights than the model {name!r} has: their hash is "
            f"{statistics.weights_hash[:12]}, the model's {model.weights_hash[:12]}. Collect them again from it."
        )
    return statistics


def _warnings(taken: Mapping[str, TaskStatistics], kinds: Collection[str]) -> list[str]:
    out = []
    if any(kind in kinds for kind in ("diag", "kfac", "block")):
        out += _mixed(taken, "fisher", "Fisher estimates", "their scales differ, and so do the tasks' weights")
    out += _mixed(taken, "split", "data splits", "not all tasks were seen alike")
    out += _mixed(taken, "examples", "numbers of examples", "the larger are the better known")
    return out


def _mixed(taken: Mapping[str, TaskStatistics], field: str, what: str, so: str) -> list[str]:
    values: dict[object, list[str]] = {}
    for name, statistics in taken.items():
        values.setdefault(getattr(statistics, field), []).append(name)
    if len(values) < 2:
        return []
    said = "; ".join(f"{value or 'none'} for {_listed(names)}" for value, names in values.items())
    return [f"The statistics mix {what} ({said}): {so}."]


def _some(names: Collection[str]) -> str:
    return f"some of {_listed(names)}" if names else "none at all"


def _listed(names: Collection[str]) -> str:
    shown = [str(name) for name in names]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "") or "nothing"
