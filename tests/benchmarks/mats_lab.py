"""The laboratory of ``mats_claims.py``: statistics, solves with snapshots, scores with each item's own head."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from claims_lab import Lab, mean, normal
from torch import Tensor

from mergelab.calibration import collect, collect_vectors
from mergelab.checkpoints import load
from mergelab.engine import merge_to_memory, plan
from mergelab.engine.adapters import as_weights
from mergelab.engine.snapshots import merge_snapshots
from mergelab.statistics import Block, TaskStatistics
from mergelab.tasks import subset_indices

#: Statistics come from at most so many validation pictures a task, and from at most this share of them; what is
#: chosen on validation pictures is chosen on others, at most so many a task.
EXAMPLES, SHARE, CHOSEN_ON = 128, 0.6, 40
KINDS = {"weights": ("kfac", "diag"), "adapter": ("block", "diag")}


@dataclass(frozen=True, eq=False)
class Shown:
    """Pictures of several tasks, with the place of each one's task and its class."""

    names: tuple[str, ...]
    images: Tensor
    owner: Tensor
    truth: Tensor


class Ground:
    """A zoo under one seed (of the pictures drawn): its experts as checkpoints, what is measured on, and statistics."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.seed, self.names = lab, lab.seed, lab.names
        self.space = "adapter" if lab.zoo.tune == "ia3" else "weights"
        self.base = load(lab.zoo.base)
        self.experts = {t: load(lab.zoo.experts[t]) for t in self.names}
        self.test = lab.items
        self.seconds: dict[str, float] = {}

    # ---- pictures ---------------------------------------------------------------------------------------------------

    def drawn(self, task: str) -> tuple[Tensor, Tensor]:
        """Places of ``val``: those of the statistics, and others to choose on."""
        one = self.lab.suite[task]
        total = len(one.split("val")[1])
        places = subset_indices(one, "val", min(EXAMPLES, int(SHARE * total)), self.seed)
        rest = torch.from_numpy(np.setdiff1d(np.arange(total), places.numpy()))
        kept = torch.randperm(len(rest), generator=torch.Generator().manual_seed(self.seed))[:CHOSEN_ON]
        return places, rest[kept.sort().values]

    @cached_property
    def chosen_on(self) -> Shown:
        images, truth, owner = [], [], []
        for t, name in enumerate(self.names):
            pictures, labels = self.lab.suite[name].split("val")
            places = self.drawn(name)[1]
            images.append(pictures[places])
            truth.append(labels[places])
            owner.append(torch.full_like(truth[-1], t))
        return Shown(self.names, torch.cat(images), torch.cat(owner), torch.cat(truth))

    # ---- statistics -------------------------------------------------------------------------------------------------

    def collected(self, task: str, split: str, places: Tensor, kinds: Sequence[str], **options: Any) -> TaskStatistics:
        """Statistics of a task's expert on the pictures at ``places`` of ``split``."""
        one = self.lab.suite[task]
        images, labels = one.split(split)
        few = replace(one, _kept={split: (images[places], labels[places])})
        run = collect_vectors if self.space == "adapter" else collect
        return run(self.experts[task], few, self.lab.heads[task], kinds=kinds, examples=len(places), split=split,
                   order="first", seed=self.seed, device="cpu", **options)  # fmt: skip

    @cached_property
    def statistics(self) -> dict[str, TaskStatistics]:
        started = time.process_time()
        found = {t: self.collected(t, "val", self.drawn(t)[0], KINDS[self.space]) for t in self.names}
        self.seconds["statistics"] = time.process_time() - started
        return found

    # ---- merges -----------------------------------------------------------------------------------------------------

    def plan(self, method: str, parameters: Mapping[str, Any] | None = None, **options: Any) -> Any:
        needs = method in {"fisher", "regmean", "mats"}
        if needs and "statistics" not in options:
            options["statistics"] = self.statistics
        space = self.space if self.space == "adapter" else None
        return plan(method, self.experts, self.base, dict(parameters or {}), seed=self.seed, space=space, **options)

    def merged(self, method: str, parameters: Mapping[str, Any] | None = None, **options: Any) -> Mapping[str, Tensor]:
        made = self.plan(method, parameters, **options)
        return as_weights(made, merge_to_memory(made, device="cpu", threads=1))

    def solved(
        self, init: Any, grid: Sequence[int], parameters: Mapping[str, Any] | None = None, **options: Any
    ) -> tuple[Any, Any]:
        """MaTS from ``init``: ``(plan, snapshots)``; what is not solved stays at the init, so 0 iterations are it."""
        objective = "block" if self.space == "adapter" else "kfac"
        told = {"objective": objective, "leftover": "init", **(parameters or {})}
        made = self.plan("mats", told, init=init, **options)
        return made, merge_snapshots(made, grid, device="cpu", threads=1)

    # ---- scores -----------------------------------------------------------------------------------------------------

    def correct(self, state: Mapping[str, Tensor], shown: Any = None, corrections: Any = None) -> Tensor:
        """Which items are right under their own task's head."""
        shown = shown or self.test
        found = self.lab.features(state, shown.images)
        right = torch.zeros(len(shown.truth), dtype=torch.bool)
        for t, name in enumerate(shown.names):
            mine = shown.owner == t
            features = found[mine] if corrections is None else corrections[name](found[mine])
            right[mine] = self.lab.heads[name].logits(features).argmax(-1) == shown.truth[mine]
        return right

    def score(self, state: Mapping[str, Tensor], corrections: Any = None) -> dict[str, Any]:
        """Accuracy on test items and on those to choose on (means over tasks), and which test items are right."""
        right = self.correct(state, corrections=corrections)
        seen = self.correct(state, self.chosen_on, corrections)
        return {"test": mean(self.test, right), "normalised": normal(self.test, right),
                "val": mean(self.chosen_on, seen), "right": right}  # fmt: skip


def total_objective(log: Sequence[Mapping[str, Any]], steps: Sequence[int]) -> list[float]:
    """J over all blocks after each of ``steps`` iterations; a block that stopped earlier keeps its last."""
    curves = [entry["objective"] for entry in log if entry.get("objective")]
    return [float(sum(curve[min(k, len(curve) - 1)] for curve in curves)) for k in steps]


def joined(parts: Sequence[TaskStatistics]) -> TaskStatistics:
    """Statistics of several sets of pictures of one task as those of their union: means by rows and by examples."""
    if len(parts) == 1:
        return parts[0]
    first, blocks = parts[0], {}
    for name in first.names:
        found = [part.block(name) for part in parts]
        rows, examples = sum(b.rows for b in found), sum(b.examples for b in found)
        blocks[name] = replace(
            found[0], inputs=_mean(found, "inputs", "rows"), outputs=_mean(found, "outputs", "rows"),
            diagonal=_mean(found, "diagonal", "examples"), full=_mean(found, "full", "examples"),
            mean=_mean(found, "mean", "rows"), rows=rows, examples=examples,
        )  # fmt: skip
    return TaskStatistics(
        first.task, blocks, name=first.name, weights_hash=first.weights_hash, split=first.split,
        examples=sum(part.examples for part in parts), fisher=first.fisher, seed=first.seed, suite=first.suite,
        meta=first.meta, skipped=first.skipped,
    )  # fmt: skip


def _mean(found: Sequence[Block], what: str, by: str) -> Tensor | None:
    if getattr(found[0], what) is None:
        return None
    total = sum(getattr(block, by) for block in found)
    return sum(getattr(block, what) * (getattr(block, by) / total) for block in found)
