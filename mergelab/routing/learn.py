"""What the router learns from: held-out items of every task, labelled with their task alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import RoutingError, suggest
from ..progress import Progress, Stop, report
from ..tasks import Suite, load_suite
from .heads import shared_model
from .modes import Runner
from .recipe import TwinRecipe
from .routed import RoutedModel
from .routers import Router, RouterSettings, train_router

#: The split that the router's items come from, and the share of them that chooses its epoch.
SPLIT, HELD_OUT = "val", 0.2


@dataclass(frozen=True)
class Lessons:
    """The suite, and which of each task's validation items train the router and which choose its epoch."""

    suite: Suite
    tasks: tuple[str, ...]
    train: dict[str, Tensor]
    held: dict[str, Tensor]

    @classmethod
    def of(cls, recipe: TwinRecipe, tasks: tuple[str, ...], suite: Suite | str | Path | None) -> Lessons:
        """Raises RoutingError where a task has no items to learn from; says which and what to do."""
        found = load_suite(suite if suite is not None else recipe.shared.suite or _zoo_of(recipe))
        train, held = {}, {}
        for task in tasks:
            if task not in found.names:
                raise RoutingError(
                    f"The suite {found.name} has no task {task!r}, which the router needs items of."
                    f"{suggest(task, found.names)} Name the expert as its task, or another suite."
                )
            entry = found[task]
            count = len(entry.split(SPLIT)[1]) if entry.has(SPLIT) else 0
            if count == 0:
                raise RoutingError(
                    f"The task {task!r} of the suite {found.name} has no validation items for the router to learn "
                    "from; give it some, or leave the expert out."
                )
            train[task], held[task] = shares(count, task, recipe.router)
        return cls(found, tasks, train, held)

    @property
    def said(self) -> str:
        counts = sorted({len(self.train[t]) + len(self.held[t]) for t in self.tasks})
        many = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        return f"task index of {many} validation items a task; no class labels"

    def images(self, held: bool) -> list[Tensor]:
        places = self.held if held else self.train
        return [self.suite[task].split(SPLIT)[0][places[task]] for task in self.tasks]

    def to_dict(self) -> dict[str, Any]:
        return {
            "suite": self.suite.name,
            "split": SPLIT,
            "train": {task: len(places) for task, places in self.train.items()},
            "held_out": {task: len(places) for task, places in self.held.items()},
        }


def shares(count: int, task: str, settings: RouterSettings) -> tuple[Tensor, Tensor]:
    """Places of a task's items that train the router and that choose its epoch: drawn by the seed and the task's name,
    a fifth held out, no more than ``per_task`` to train on and a quarter of that to choose by. Never both."""
    digest = hashlib.sha256(f"router/{settings.seed}/{task}".encode()).digest()
    order = torch.randperm(count, generator=torch.Generator().manual_seed(int.from_bytes(digest[:7], "big")))
    held = max(1, round(HELD_OUT * count)) if count > 1 else 0
    most = settings.per_task or count
    train = order[held:][:most]
    kept = order[:held][: max(1, -(-most // 4))]
    return train.sort().values, kept.sort().values


def learn(
    routed: RoutedModel,
    recipe: TwinRecipe,
    lessons: Lessons,
    *,
    shared: str,
    device: str,
    clock: Any,
    stop: Stop | None,
) -> tuple[RoutedModel, dict[str, Any]]:
    """``routed`` with a router (and, where its kind allows it, one on an early layer), and notes for its settings."""
    notes: dict[str, Any] = lessons.to_dict()
    with clock("features") as told:
        model = shared_model(routed, device)
        for task, head in routed.heads.items():
            if head.width != model.width:
                raise RoutingError(
                    f"The head of {task!r} takes features of width {head.width}, the shared model gives {model.width}; "
                    "take heads trained with these experts."
                )
        groups = lessons.images(False) + lessons.images(True)
        found = model.encode_many(groups, progress=_upto(told, 0.7), stop=stop)
        runner, layer, early = Runner(routed, model), recipe.inference.early_layer, None
        notes["not_batched"] = runner.check()
        if layer != 0 and not notes["not_batched"]:
            early, layer = _early(runner, layer, groups, told=_beyond(told, 0.7), stop=stop)
    with clock("router") as told:
        router = _fit(found, lessons, recipe.router, source="pooled", shared=shared, told=told, stop=stop)
        routed = replace(routed, router=router)
        if early is not None:
            second = _fit(early, lessons, recipe.router, source=f"layer {layer}", shared=shared, told=told,
                          stop=stop)  # fmt: skip
            routed = replace(routed, early_router=second, early_layer=layer)
    return routed, notes


def _fit(
    groups: Sequence[Tensor],
    lessons: Lessons,
    settings: RouterSettings,
    *,
    source: str,
    shared: str,
    told: Progress,
    stop: Stop | None,
) -> Router:
    count = len(lessons.tasks)
    train = dict(zip(lessons.tasks, groups[:count], strict=True))
    held = dict(zip(lessons.tasks, groups[count:], strict=True))
    return train_router(None, train, held, settings, progress=told, stop=stop, source=source, shared=shared)


def _early(
    runner: Runner, layer: int | None, groups: list[Tensor], *, told: Progress, stop: Stop | None
) -> tuple[list[Tensor], int]:
    """Features on an early layer (default: a quarter of the way), and which layer it is."""
    blocks = len(runner.rows().blocks)
    layer = max(1, blocks // 4) if layer is None else layer
    if layer >= blocks:
        raise RoutingError(f"early_layer {layer} is not in a model of {blocks} blocks; choose 1 to {blocks - 1}.")
    sizes = [len(group) for group in groups]
    out = []
    for i, group in enumerate(groups):
        report(told, sum(sizes[:i]), sum(sizes), "reading an early layer")
        out.append(runner.early_features(group, layer, stop=stop) if len(group) else torch.zeros(0, 0))
    return out, layer


def _zoo_of(recipe: TwinRecipe) -> str:
    """The zoo that all experts are of."""
    zoos = {e.model.split("/")[0].removeprefix("zoo:") for e in recipe.experts.values() if e.model.startswith("zoo:")}
    if len(zoos) != 1 or not all(e.model.startswith("zoo:") for e in recipe.experts.values()):
        raise RoutingError("Say which suite the router's items come from (suite: …), or build without a router.")
    return zoos.pop()


def _upto(told: Progress, share: float) -> Progress:
    return lambda done, total, text: told(int(1000 * share * done / max(total, 1)), 1000, text)


def _beyond(told: Progress, share: float) -> Progress:
    return lambda done, total, text: told(int(1000 * (share + (1 - share) * done / max(total, 1))), 1000, text)
