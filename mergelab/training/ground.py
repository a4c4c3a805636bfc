"""What a training recipe names, opened: the model, every task's lessons and head, the items held for choosing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ..errors import TaskError
from ..models import Model, build
from ..tasks import Head, Suite, Task, class_mean_head, heads_for, load_suite, subset_indices
from ..tasks.evaluate import support
from ..tasks.suite import hold_out
from .inputs import known_heads
from .learner import Learner, Lesson, learner_of
from .recipe import HELD, TrainRecipe

#: Labelled training pictures a class for the head of a task that has none: a class mean of the base's features.
SHOTS = 10


class Ground:
    """A recipe's model and data. The test split is read by :meth:`items` alone, and only when asked for it."""

    def __init__(self, recipe: TrainRecipe, device: str = "auto") -> None:
        self.recipe = recipe
        self.suite: Suite = load_suite(recipe.suite)
        self.model: Model = build(recipe.base_model, device=device)
        self.tasks: tuple[Task, ...] = chosen_tasks(self.suite, recipe.tasks)
        self.names = tuple(task.name for task in self.tasks)
        recipe.check_merges(self.names)
        self.heads: dict[str, Head] = self._heads()
        self._learner: Learner | None = None
        self._lessons: dict[str, Lesson] = {}

    @property
    def learner(self) -> Learner:
        """A private copy of the model to train."""
        if self._learner is None:
            self._learner = learner_of(self.model)
        return self._learner

    def trained(self) -> tuple[str, ...]:
        """The names of the tensors that training may change."""
        return self.learner.look(self.lesson(self.names[0]))

    def lesson(self, name: str) -> Lesson:
        """What a task is trained on: training items, or the share of the validation items that is not held."""
        if name not in self._lessons:
            task, recipe = self.suite[name], self.recipe
            places = self._places(task, recipe.split)
            if recipe.split == "train" and recipe.images is not None:
                places = subset_indices(task, "train", recipe.images, recipe.seed)
            elif recipe.images is not None:
                places = places[: recipe.images]
            images, labels = task.split(recipe.split)
            self._lessons[name] = Lesson(name, images[places], labels[places], self.heads[name], recipe.split)
        return self._lessons[name]

    def items(self, name: str, split: str, limit: int | None) -> tuple[Tensor, Tensor]:
        """Pictures and labels to measure on: of ``test``, of ``val``, the ``held`` validation items, or those of
        the ``lesson``."""
        if split == "lesson":
            lesson = self.lesson(name)
            assert isinstance(lesson.inputs, Tensor)
            return lesson.inputs, lesson.labels
        task = self.suite[name]
        if split != "held":
            images, labels = task.split(split)
            places = self.places(name, split, limit)
            return images[places], labels[places]
        images, labels = task.split("val")
        places = self._places(task, "held")
        if limit is not None and limit < len(places):
            few = torch.randperm(len(places), generator=torch.Generator().manual_seed(self.recipe.seed))[:limit]
            places = places[few.sort().values]
        return images[places], labels[places]

    def places(self, name: str, split: str, limit: int | None) -> Tensor:
        """Places in ``test`` or ``val`` of the items that are measured: those that every evaluation looks at."""
        total = len(self.suite[name].split(split)[1])
        return (
            torch.arange(total) if limit is None or limit >= total else subset_indices(self.suite[name], split, limit)
        )

    def _places(self, task: Task, split: str) -> Tensor:
        """Places in the split that the name stands for; ``val`` and ``held`` never share an item."""
        wanted = "val" if split == "held" else split
        if not task.has(wanted) or not len(task.split(wanted)[1]):
            raise TaskError(f"The task {task.name} has no {wanted} pictures; take another split, or leave it out.")
        labels = task.split(wanted)[1]
        if wanted == "train" or (split == "held" and self.recipe.split == "train"):
            return torch.arange(len(labels))
        held, rest = hold_out(labels, task.name, HELD, self.recipe.seed)
        if split == "val" and len(rest) == len(labels):
            raise TaskError(
                f"The task {task.name} has too few validation pictures ({len(labels)}) to hold some for choosing."
            )
        random = torch.randperm(len(rest), generator=torch.Generator().manual_seed(self.recipe.seed))
        return held if split == "held" else rest[random]

    def _heads(self) -> dict[str, Head]:
        """Heads trained with the zoo's experts, else zero-shot from class names, else class means of the base's
        features of a few training pictures."""
        found = known_heads(self.model, self.suite, self.tasks)
        for task in self.tasks:
            if task.name not in found:
                images, labels = support(task, "test", SHOTS, self.recipe.seed)
                found[task.name] = class_mean_head(self.model.encode(images), labels, len(task.classes))
        return found

    def heads_used(self) -> str:
        """In words, what the heads were made from."""
        kinds = {kind: [n for n, h in self.heads.items() if h.kind == kind] for kind in
                 dict.fromkeys(h.kind for h in self.heads.values())}  # fmt: skip
        said = {"trained": "heads trained with the zoo's experts", "zero-shot": "heads from class names",
                "class mean": f"heads from {SHOTS} training pictures a class"}  # fmt: skip
        parts = [said.get(k, k) if len(kinds) == 1 else f"{said.get(k, k)} ({', '.join(names)})"
                 for k, names in kinds.items()]  # fmt: skip
        return "; ".join(parts) + (", trained along" if self.recipe.tuning.heads == "trained" else ", frozen")


def chosen_tasks(suite: Suite, names: Sequence[str] | None) -> tuple[Task, ...]:
    """The tasks of these names in their order; by default those with an expert, or all where none has one."""
    if names is not None:
        return tuple(suite[name] for name in names)
    seen = tuple(task for task in suite if task.seen)
    return seen if heads_for(suite) and seen else tuple(suite)


@lru_cache(maxsize=1)
def kept_ground(recipe: str, device: str) -> Ground:
    """One ground a process: workers train expert after expert of the same recipe (as JSON)."""
    return Ground(TrainRecipe.from_dict(json.loads(recipe)), device)
