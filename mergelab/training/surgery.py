"""Representation Surgery: bring a merged model's features back to each expert's, task by task.

Yang et al. 2024 (arXiv 2402.02705), section 4: fit ẑ = z − U·relu(D·z) to the expert's features by L1 on unlabelled
inputs. Both encoders are frozen, so their features are computed once per picture; fitting on these is exactly what
running the encoders at every step would give, at almost no cost.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import MergeLabError, TaskError
from ..models import Model, Weights
from ..progress import Progress, Stop, report
from .correction import Correction, Surgery
from .inputs import Draws, Unlabelled

#: Points of each cloud in a projection.
POINTS = 200
_LOOK_EVERY = 50  # steps between two looks at the stop flag


@dataclass(frozen=True)
class SurgerySettings:
    """How to fit. The defaults are the authors': rank 16, Adam 1e-3, 500 rounds of two batches of 16."""

    rank: int = 16
    steps: int = 1000
    batch: int = 16
    rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1 or self.steps < 0 or self.batch < 1 or not self.rate > 0:
            raise MergeLabError("Surgery needs a rank and a batch of at least 1, steps from 0 and a rate above 0.")


@dataclass(frozen=True, eq=False)
class Features:
    """Features [N, width] of the same pictures from the merged model and from the task's expert, fitted on and not."""

    merged: Tensor
    expert: Tensor
    held_merged: Tensor
    held_expert: Tensor


@dataclass(frozen=True, eq=False)
class Operated:
    """A surgery, and a plain table for a picture of each task's features: see :func:`projection`."""

    surgery: Surgery
    projections: Mapping[str, Mapping[str, Any]]


def operate(
    model: Model,
    merged: Mapping[str, Tensor] | Weights,
    experts: Mapping[str, Mapping[str, Tensor]],
    inputs: Sequence[Unlabelled],
    settings: SurgerySettings | None = None,
    *,
    weights_hash: str,
    held_out: Mapping[str, Tensor] | None = None,
    suite: str = "",
    source: str = "",
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Operated:
    """Fit one correction a task for the weights ``merged`` of ``model``, towards the weights ``experts[task]``.

    ``inputs``: the unlabelled pictures of each task to fit on; ``held_out``: other pictures to measure on (uint8 [N, H,
    W, 3] by task). ``weights_hash`` says which weights the surgery belongs to. Raises TaskError when a task has no
    expert, MergeLabError when features or the fit are not finite, Cancelled after ``stop``.
    """
    started = time.perf_counter()
    settings = settings or SurgerySettings()
    if len({one.split for one in inputs}) > 1:
        raise TaskError("All inputs of one surgery must come from the same split.")
    for one in inputs:
        if one.task not in experts:
            raise TaskError(f"The task {one.task} has no expert to correct towards; give its checkpoint.")
    weights = merged if isinstance(merged, Weights) else model.prepare(merged, "The merged model")
    found = _features(model, _States(weights, experts), inputs, held_out or {}, _Run(progress, stop))
    corrections, bias, projections = {}, {}, {}
    for done, (task, features) in enumerate(found.items()):
        report(progress, done, len(found), f"fitting {task}")
        corrections[task] = fit(features.merged, features.expert, settings, task, stop)
        bias[task] = _bias(features, corrections[task])
        projections[task] = projection(features.merged, features.expert, corrections[task](features.merged))
    report(progress, len(found), len(found), "fitted")
    surgery = Surgery(
        corrections, weights_hash, model.width, settings.rank, inputs[0].split if inputs else "val",
        {one.task: len(one.images) for one in inputs}, asdict(settings), bias, suite, source,
        round(time.perf_counter() - started, 3),
    )  # fmt: skip
    return Operated(surgery, projections)


def fit(
    merged: Tensor, expert: Tensor, settings: SurgerySettings, task: str = "", stop: Stop | None = None
) -> Correction:
    """The correction of features ``merged`` [N, width] towards ``expert`` by L1, Adam, from the identity.

    Depends on the seed, the task's name and the features only.
    """
    generator = torch.Generator().manual_seed((zlib.crc32(f"surgery/{task}".encode()) << 16) + settings.seed)
    correction = Correction.start(merged.shape[1], settings.rank, generator)
    parts = [correction.down.requires_grad_(True), correction.up.requires_grad_(True)]
    optimiser = torch.optim.Adam(parts, lr=settings.rate)
    draws = Draws(len(merged), settings.batch, settings.seed, f"surgery/{task}")
    for step in range(settings.steps):
        if stop is not None and step % _LOOK_EVERY == 0:
            stop.check()
        places = draws.next()
        loss = functional.l1_loss(correction(merged[places]), expert[places])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    for part in parts:
        part.requires_grad_(False)
        if not bool(torch.isfinite(part).all()):
            raise MergeLabError(f"The surgery of {task} diverged. Lower the rate {settings.rate:g}.")
    return correction


def bias_of(merged: Tensor, expert: Tensor) -> float:
    """The representation bias: mean absolute difference of features over pictures and dimensions (section 3.2)."""
    return float((merged - expert).abs().mean())


def projection(merged: Tensor, expert: Tensor, corrected: Tensor, points: int = POINTS) -> dict[str, Any]:
    """Three clouds of features in two dimensions, on the same axes, as plain lists of [x, y].

    The axes are the first two principal directions of merged and expert features together; ``explained`` is their share
    of the variance. At most ``points`` of a cloud, evenly taken, the same pictures in each.
    """
    both = torch.cat([merged, expert]).double()
    middle = both.mean(0)
    _, values, axes = torch.linalg.svd(both - middle, full_matrices=False)
    axes = axes[:2] * torch.sign(axes[:2].gather(1, axes[:2].abs().argmax(1, keepdim=True)))  # a sign that stays
    total = float(values.square().sum())
    taken = torch.linspace(0, len(merged) - 1, min(points, len(merged))).long()
    clouds = {"merged": merged, "expert": expert, "corrected": corrected}
    places = {
        name: ((cloud[taken].double() - middle) @ axes.T).round(decimals=4).tolist() for name, cloud in clouds.items()
    }
    explained = [float(value) ** 2 / total if total else 0.0 for value in values[:2]]
    return {"explained": [round(share, 4) for share in explained], "points": places}


def _features(
    model: Model, states: _States, inputs: Sequence[Unlabelled], held_out: Mapping[str, Tensor], run: _Run
) -> dict[str, Features]:
    """Merged and expert features of every task's pictures: each picture is looked at twice, once by each."""
    groups = [[one.images, held_out.get(one.task, one.images[:0])] for one in inputs]
    total = 2 * sum(len(images) for pair in groups for images in pair)
    ours = iter(run.encode(model, [images for pair in groups for images in pair], states.merged, total))
    out = {}
    for one, pair in zip(inputs, groups, strict=True):
        weights = model.prepare(states.experts[one.task], f"The expert of {one.task}")
        theirs = run.encode(model, pair, weights, total)
        out[one.task] = Features(next(ours), theirs[0], next(ours), theirs[1])
    return out


@dataclass(frozen=True, eq=False)
class _States:
    """The weights whose features are compared."""

    merged: Weights
    experts: Mapping[str, Mapping[str, Tensor]]


class _Run:
    """Progress over several encodings, and the stop flag."""

    def __init__(self, progress: Progress | None, stop: Stop | None) -> None:
        self.progress, self.stop, self.done = progress, stop, 0

    def encode(self, model: Model, groups: Sequence[Tensor], weights: Weights, total: int) -> list[Tensor]:
        def told(now: int, _of: int, text: str) -> None:
            report(self.progress, self.done + now, total, text)

        found = model.encode_many(groups, progress=told, stop=self.stop, weights=weights)
        self.done += sum(map(len, groups))
        return found


def _bias(features: Features, correction: Correction) -> dict[str, float]:
    found = {
        "before": bias_of(features.merged, features.expert),
        "after": bias_of(correction(features.merged), features.expert),
    }
    if len(features.held_merged):
        found["held_out"] = len(features.held_merged)
        found["held_out_before"] = bias_of(features.held_merged, features.held_expert)
        found["held_out_after"] = bias_of(correction(features.held_merged), features.held_expert)
    return found
