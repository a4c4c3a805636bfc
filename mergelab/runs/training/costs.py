"""What a run costs: samples, seconds, memory, bytes sent and stored; before it starts, and after every round."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ...engine.workers import default_threads
from ...training.ground import Ground
from ...training.recipe import TrainRecipe
from .one_shot import looks
from .record import Record

#: Items whose step is timed to say beforehand how long a run takes.
_TIMED = 16
#: Items a task that are reckoned with where all of a split are looked at.
_ALL = 1000
#: A forward pass alone, as a share of a step's time.
FORWARD = 1 / 3


class Meter:
    """Costs of a run that may go on in several sittings."""

    def __init__(self, before: Mapping[str, Any] | None = None) -> None:
        self._before = float((before or {}).get("wall_seconds", 0.0))
        self._peak = int((before or {}).get("peak_bytes", 0))
        self._started = time.perf_counter()

    def costs(self, record: Record, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """``samples`` that training passed over, ``training_seconds`` of the courses, ``wall_seconds`` of everything,
        ``peak_bytes`` of this process or its largest worker, ``sent_bytes`` (each task gets a model and gives one back,
        every round), ``stored_bytes`` of the model."""
        size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
        courses = [log for r in record.rounds for log in r["courses"].values()]
        rounds = len(record.rounds)
        self._peak = max(self._peak, peak_bytes())
        return {
            "samples": record.samples, "training_seconds": sum(float(log["wall"]) for log in courses),
            "wall_seconds": self._before + time.perf_counter() - self._started, "peak_bytes": self._peak,
            "sent_bytes": 2 * rounds * len(record.tasks) * size if record.kind == "atm" else 0,
            "stored_bytes": size * (len(record.tasks) if record.kind == "experts" else 1),
        }  # fmt: skip


def peak_bytes() -> int:
    """The most memory that this process, or the largest of its children, has held; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def estimate(
    recipe: TrainRecipe, *, beside: Sequence[str] = (), device: str = "auto", workers: int = 1
) -> dict[str, Any]:
    """What a run will cost with what stands ``beside`` it, from the sizes of its data and one timed step: samples,
    seconds, bytes, and ``parts``, the number of runs.

    The step is taken on a few items of the first task and thrown away.
    """
    ground = Ground(recipe, device)
    items = {name: len(ground.lesson(name)) for name in ground.names}
    per_item = _seconds_per_item(ground)
    budget, tuning = recipe.budget, recipe.tuning
    if budget.steps is None:
        part = {name: budget.rounds - recipe.join.get(name, 1) + 1 for name in items}
        samples = sum(part[name] * budget.epochs * count for name, count in items.items())
    else:
        samples = budget.rounds * budget.steps * tuning.batch * len(items)
    own = ground.model.weights.tensors
    size = sum(own[name].numel() * own[name].element_size() for name in ground.trained())
    tasks = len(items)
    side = min(workers, tasks) if recipe.train != "joint" else 1
    parts = 1 + len({"joint", "pcgrad", "one_shot"} & set(beside) - {recipe.train})
    limit = 0 if recipe.watch.split == "none" else min(recipe.watch.limit or _ALL, _ALL)
    looked = parts * tasks * limit * (budget.rounds + 1)
    if "one_shot" in beside:
        looked += budget.rounds * tasks * sum(passes * items for passes, items in looks(limit))
    training = parts * samples / max(1, min(side, default_threads()))
    seconds = (training + looked * FORWARD) * per_item
    moments = tuning.moments if tuning.tune == "full" else 0
    return {
        "samples": parts * samples, "items": items, "seconds": seconds, "parts": parts, "rounds": budget.rounds,
        "tasks": tasks,
        "memory_bytes": side * size * (3 + moments) + 2 * size,
        "sent_bytes": 2 * budget.rounds * tasks * size if recipe.train == "atm" else 0,
        "disk_bytes": parts * size * (2 + (tasks if recipe.train != "joint" else 1) * (1 + moments)),
        "stored_bytes": size,
    }  # fmt: skip


def rounds_bytes(recipe: TrainRecipe, beside: Sequence[str], size: int) -> int:
    """What all rounds of a run and of what stands beside it take on disk where they are kept, for a model of ``size``
    bytes: every round's model, its experts, and what an optimiser that goes on from round to round has."""
    tasks, rounds = len(recipe.tasks or ()), recipe.budget.rounds
    models = 0
    for kind in {recipe.train, *beside} - {"alpha"}:
        courses = 1 if kind in ("joint", "pcgrad") else tasks
        models += rounds * (courses + (kind not in ("experts", "one_shot")))
        if kind != "atm":
            models += (rounds - 1) * courses * (1 + recipe.tuning.moments)
    return models * size


def _seconds_per_item(ground: Ground) -> float:
    import torch

    lesson = ground.lesson(ground.names[0])
    places = torch.arange(min(_TIMED, len(lesson)))
    names = set(ground.trained())
    for name, parameter in ground.learner.module.named_parameters():
        parameter.requires_grad_(name in names)
    ground.learner.loss(lesson, places).backward()  # the first pass allocates
    started = time.perf_counter()
    ground.learner.loss(lesson, places).backward()
    seconds = time.perf_counter() - started
    ground.learner.module.zero_grad(set_to_none=True)
    return seconds / len(places)
