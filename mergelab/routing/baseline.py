"""One model to compare Twin-Merging with: what it is made of, what it stores, what data it saw, and how it is run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..models import Model
from ..models.batches import checked
from ..progress import Progress, Stop
from .evaluate import RoutedEvaluation, evaluate_routed
from .gate import Gate, check_weights
from .groups import Centroids
from .modes import BATCH, GroupSettings, Ran, Runner
from .parts import Dense
from .routed import RoutedModel


@dataclass(frozen=True, eq=False)
class Made:
    """A part that is computed whenever it is asked for, so that a comparison needs no memory of its own.

    ``nbytes`` is what storing it takes, ``make`` gives the change, float32 of ``shape``.
    """

    shape: tuple[int, ...]
    nbytes: int
    make: Callable[[], Tensor]

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)

    def dense(self) -> Tensor:
        return self.make()

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Dense:
        return Dense(self.make()).to(dtype=dtype, device=device)


@dataclass(frozen=True, eq=False)
class Baseline:
    """A row of the comparison.

    routed: the model, with the router and the gate that it is run with. guide: the routed model whose shared model
    makes the router's features, where that is not ``routed``'s own. weights: None (the router's) or ``oracle``. mode:
    how it is run. bytes: what a file of it holds, by part, with ``total``. needs_task_id: whether it is told the task
    of an input, beyond what the head policy says.
    """

    name: str
    title: str
    routed: RoutedModel
    bytes: Mapping[str, int]
    data_used: str
    guide: RoutedModel | None = None
    weights: str | None = None
    mode: str = "adapter"
    needs_task_id: bool = False
    note: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def runner(self, model: Model | None = None, *, guide: Runner | None = None, device: str = "auto") -> Runner:
        """Ready to run, in ``model`` if it is given (weights are exchanged, so one model serves all baselines).
        ``guide``: a runner of the guide that is there already."""
        if self.guide is not None and guide is None:
            guide = Runner(self.guide, model, device=device)
        return BaselineRunner(self.routed, model, guide=guide if self.guide is not None else None, device=device)

    def evaluate(
        self,
        suite: Any = "starter",
        *,
        head: str = "router_argmax",
        mode: str | None = None,
        runner: Runner | None = None,
        **options: Any,
    ) -> RoutedEvaluation:
        """:func:`evaluate_routed` of it; ``options`` are that function's."""
        return evaluate_routed(runner or self.runner(), suite, mode=mode or self.mode, head=head, weights=self.weights,
                               **options)  # fmt: skip


class BaselineRunner(Runner):
    """A runner whose router may read another model's features, and that looks once where there is nothing to mix."""

    def __init__(
        self, routed: RoutedModel, model: Model | None = None, *, guide: Runner | None = None, device: str = "auto"
    ) -> None:
        super().__init__(routed, model if model is not None or guide is None else guide.model, device=device)
        self.guide = guide

    def features(
        self, images: Tensor, *, batch: int = BATCH, progress: Progress | None = None, stop: Stop | None = None
    ) -> Tensor:
        if self.guide is None:
            return super().features(images, batch=batch, progress=progress, stop=stop)
        return self.guide.features(images, batch=batch, progress=progress, stop=stop)

    def run(
        self,
        images: Any,
        weights: Sequence[float] | Tensor | None = None,
        mode: str = "auto",
        *,
        gate: Gate | None = None,
        grouping: GroupSettings | Centroids | None = None,
        batch: int = BATCH,
        progress: Progress | None = None,
        stop: Stop | None = None,
    ) -> Ran:
        if any(self.routed.parts.values()):
            return super().run(images, weights, mode, gate=gate, grouping=grouping, batch=batch, progress=progress,
                               stop=stop)  # fmt: skip
        images, seconds = checked(images), {"features": 0.0, "router": 0.0, "merge": 0.0, "forward": 0.0}
        begun = time.perf_counter()
        found = self.model.encode(images, batch, progress, stop, weights=self._shared)
        seconds["forward"] = time.perf_counter() - begun
        logits = None
        if weights is None:
            begun = time.perf_counter()
            read = found if self.guide is None else self.features(images, batch=batch, progress=progress, stop=stop)
            seconds["features"] = time.perf_counter() - begun
            begun = time.perf_counter()
            logits = self.logits(read)
            rows = (gate or self.routed.gate).weights(logits)
            seconds["router"] = time.perf_counter() - begun
        else:
            plain = check_weights(weights, len(self.routed.names), allow_negative=True)
            rows = plain.expand(len(images), -1) if plain.ndim == 1 else plain
        why = "There is nothing to mix, so one model answers and the router only chooses the head."
        return Ran(found, rows, logits, "static", why, None, 0, seconds)


def table(
    baselines: Iterable[Baseline],
    evaluate: Callable[[Baseline, str], RoutedEvaluation],
    heads: Sequence[str] = ("router_argmax",),
) -> list[dict[str, Any]]:
    """One row for every baseline and head policy, with ``evaluate(baseline, head)``; see :func:`row`."""
    return [row(baseline, evaluate(baseline, head)) for baseline in baselines for head in heads]


def row(baseline: Baseline, found: RoutedEvaluation) -> dict[str, Any]:
    """name, title, head, mode, accuracy, normalised, unseen (accuracy), tasks {task: accuracy}, task_normalised, router
    (its accuracy), bytes, parts (bytes by part), data_used, needs_task_id, seconds_per_1000, note."""
    told = found.to_dict()
    return {
        "name": baseline.name,
        "title": baseline.title,
        "head": found.head,
        "mode": found.mode,
        "accuracy": found.evaluation.seen.accuracy,
        "normalised": found.evaluation.seen.normalised,
        "unseen": found.evaluation.unseen.accuracy,
        "tasks": {task: score.accuracy for task, score in found.evaluation.tasks.items()},
        "task_normalised": {task: score.normalised for task, score in found.evaluation.tasks.items()},
        "router": found.router["accuracy"],
        "bytes": baseline.bytes["total"],
        "parts": dict(baseline.bytes),
        "data_used": baseline.data_used,
        "needs_task_id": baseline.needs_task_id or found.head == "oracle",
        "seconds_per_1000": told["seconds_per_1000"],
        "note": baseline.note,
    }


def sizes(routed: RoutedModel, guide: RoutedModel | None = None, **changed: int) -> dict[str, int]:
    """Bytes by part and ``total``: those of ``routed``, with ``guide`` for the shared model that the router reads where
    it is another one, and ``changed`` parts in place of counted ones."""
    parts = {k: v for k, v in {**routed.bytes(), **changed}.items() if k != "total"}
    if guide is not None:
        parts["guide"] = guide.bytes()["shared"]
    return {**parts, "total": sum(parts.values())}
