"""The job that an executor runs: one course of training, from a file to a file."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..progress import Progress, Stop
from ..tasks import Head
from . import statefile
from .ground import Ground, kept_ground
from .learner import Lesson
from .order import steps_per_epoch
from .trainer import Epoch, Trainer, lockstep

#: Items on which the loss before the first step is measured.
PROBE = 256


@dataclass(frozen=True)
class Course:
    """A course of training, as plain values.

    ``recipe`` (JSON of a TrainRecipe) and ``tasks``: one gives an expert, several are trained jointly. ``unit`` is the
    round's number from 1. ``start``: file of the weights it starts from (None: the base's). ``before``: file of an
    earlier course's :meth:`~mergelab.training.trainer.Trainer.saved` to go on from, or only its moments if
    ``moments_only``. ``out``: file for the weights; ``saved``: file for what the next course goes on from, where one
    will. ``key`` names what all this depends on, so that a file is known to be of this very course.
    """

    recipe: str
    tasks: tuple[str, ...]
    unit: int
    out: str
    key: str
    device: str = "cpu"
    start: str | None = None
    before: str | None = None
    moments_only: bool = False
    saved: str | None = None
    heads: str | None = None
    heads_out: str | None = None


def run(course: Course, progress: Progress | None = None, stop: Stop | None = None) -> dict[str, Any]:
    """Train and write; the log as plain data. A course whose files are there and whole is not run again."""
    done = finished(course)
    if done is not None:
        return done
    started = time.perf_counter()
    ground = kept_ground(course.recipe, course.device)
    lessons = _lessons(ground, course)
    start = _start(ground, course.start)
    part = _Part(course)
    first, last, per_epoch, total = span(ground, lessons, course.unit)
    trainer = Trainer(
        ground.learner, lessons, ground.recipe.tuning, start, total=total, per_epoch=per_epoch,
        combine=ground.recipe.combine, key=course.unit if course.before is None else 1,
    )  # fmt: skip
    with trainer:
        if part.found:
            trainer.restore(statefile.read(part.path))
        elif course.before is not None:
            saved = statefile.read(Path(course.before))
            trainer.restore_moments(saved) if course.moments_only else trainer.restore(saved)
        begun = part.start_loss if part.found else trainer.loss(PROBE)

        def after(epoch: Epoch) -> None:
            part.epochs.append(epoch)
            if epoch.end < last:
                part.save(trainer, begun)

        trainer.run(part.end or first, last, on_epoch=after, progress=progress, stop=stop)
        wall = part.seconds + time.perf_counter() - started
        log = {"start_loss": begun, **logged(part.epochs, lessons), "wall": wall}
        if course.saved is not None:
            statefile.save(Path(course.saved), trainer.saved(), {"key": course.key})
        if course.heads_out is not None:
            statefile.save(Path(course.heads_out), tensors_of(trainer.heads()), {"key": course.key})
        statefile.save(Path(course.out), trainer.state(), {"key": course.key, "log": log})
    part.path.unlink(missing_ok=True)
    return log


class _Part:
    """A course of several epochs that was cut after one of them: what it goes on from."""

    def __init__(self, course: Course) -> None:
        self.path, self._key, self._began = Path(f"{course.out}.part"), course.key, time.perf_counter()
        kept = statefile.about(self.path) or {}
        self.found = kept.get("key") == course.key
        self.start_loss = float(kept["start_loss"]) if self.found else 0.0
        self.seconds = float(kept["seconds"]) if self.found else 0.0
        self.epochs = [Epoch(**epoch) for epoch in kept["epochs"]] if self.found else []

    @property
    def end(self) -> int | None:
        """The step after the last epoch that was kept."""
        return self.epochs[-1].end if self.epochs else None

    def save(self, trainer: Trainer, begun: float) -> None:
        told = {"key": self._key, "start_loss": begun, "epochs": [asdict(epoch) for epoch in self.epochs],
                "seconds": self.seconds + time.perf_counter() - self._began}  # fmt: skip
        statefile.save(self.path, trainer.saved(), told)


def finished(course: Course) -> dict[str, Any] | None:
    """The log of a course that has been run, from its files' headers."""
    wanted = [path for path in (course.saved, course.heads_out) if path is not None]
    if any((statefile.about(Path(path)) or {}).get("key") != course.key for path in wanted):
        return None
    found = statefile.about(Path(course.out)) or {}
    log = found.get("log")
    return log if found.get("key") == course.key and isinstance(log, dict) else None


def span(ground: Ground, lessons: list[Lesson], unit: int) -> tuple[int, int, int, int]:
    """First step, the step after the last, steps an epoch, and steps of the whole budget, of round ``unit``.

    Rounds of ``steps`` go in lockstep over all tasks of the recipe, so that a step is the same share of every task.
    """
    budget, tuning = ground.recipe.budget, ground.recipe.tuning
    together = budget.steps is not None or tuning.pace == "steps"
    if together and len(lessons) < len(ground.names):
        per_epoch = lockstep([ground.lesson(name) for name in ground.names], tuning)
    elif len(lessons) > 1 or tuning.optimiser == "gd":
        per_epoch = lockstep(lessons, tuning)
    else:
        per_epoch = steps_per_epoch(len(lessons[0]), tuning.batch)
    length = budget.steps if budget.steps is not None else budget.epochs * per_epoch
    return (unit - 1) * length, unit * length, per_epoch, budget.rounds * length


def logged(epochs: list[Epoch], lessons: list[Lesson]) -> dict[str, Any]:
    """What the epochs of a course saw, as plain data."""
    return {
        "epochs": [{k: v for k, v in asdict(epoch).items() if k != "end"} for epoch in epochs],
        "samples": sum(epoch.samples for epoch in epochs), "seconds": sum(epoch.seconds for epoch in epochs),
        "items": {lesson.task: len(lesson) for lesson in lessons},
    }  # fmt: skip


def tensors_of(heads: Mapping[str, Head]) -> dict[str, Tensor]:
    """Trained weights and biases of heads, for a file."""
    out = {f"{task}/weight": head.weight.contiguous() for task, head in heads.items()}
    return out | {f"{task}/bias": head.bias.contiguous() for task, head in heads.items() if head.bias is not None}


def with_tensors(heads: Mapping[str, Head], tensors: Mapping[str, Tensor]) -> dict[str, Head]:
    """``heads`` with the weights and biases of such a file where it has them."""
    return {
        task: replace(
            head, weight=tensors.get(f"{task}/weight", head.weight), bias=tensors.get(f"{task}/bias", head.bias)
        )
        for task, head in heads.items()
    }


def _lessons(ground: Ground, course: Course) -> list[Lesson]:
    lessons = [ground.lesson(name) for name in course.tasks]
    if course.heads is None:
        return lessons
    heads = with_tensors({lesson.task: lesson.head for lesson in lessons}, statefile.read(Path(course.heads)))
    return [replace(lesson, head=heads[lesson.task]) for lesson in lessons]


def _start(ground: Ground, path: str | None) -> dict[str, Tensor]:
    names = ground.trained()
    own = ground.model.weights.tensors
    if path is None:
        return {name: own[name] for name in names}
    given = statefile.read(Path(path))
    return {name: given.get(name, own[name]) for name in names}
