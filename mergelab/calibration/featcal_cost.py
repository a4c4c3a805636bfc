"""What a calibration of features takes, before it is started: one block in the middle, timed on one batch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import StatisticsError
from .drift import DriftSettings
from .featcal import _blocks, _layers, _Work
from .inputs import as_batch
from .rest import Forward
from .through import parts_of, placed


@dataclass(frozen=True)
class FeatureCost:
    """Of ``blocks`` blocks: seconds that a picture takes in one of them, seconds of fitting it; ``timed`` pictures."""

    blocks: int
    picture: float
    fit: float
    timed: int

    def seconds(self, pictures: int) -> float:
        """Of a whole calibration with so many pictures of all tasks together."""
        return self.blocks * (self.picture * pictures + self.fit)


def feature_cost(
    module: nn.Module,
    merged: Mapping[str, Tensor],
    experts: Mapping[str, Mapping[str, Tensor]],
    batch: Any,
    *,
    forward: Forward,
    spelling: Mapping[str, str] | None = None,
) -> FeatureCost:
    """Time :func:`~mergelab.calibration.featcal.calibrate_features` on the block in the middle of its blocks.

    A block in front is reached sooner and one behind later, so that the middle stands for all of them. ``merged`` may
    be any weights of the same shapes. What is computed is thrown away.
    """
    given = as_batch(batch)
    if not given.size or not experts:
        raise StatisticsError("The batch that would be timed is empty, or there is no expert.")
    task, known = next(iter(experts)), set(module.state_dict())
    names = {(spelling or {}).get(name, name): name for name in merged}
    names = {own: name for own, name in names.items() if own in known}
    work = _Work(module, forward, DriftSettings(), names, merged, merged, experts, {task: lambda: [given]}, None)
    with placed(module, work.current):
        parts = _blocks(module, parts_of(module, given, forward, names))  # runs once, so that nothing starts cold
    part = parts[len(parts) // 2]
    layers = _layers(part)
    started = time.perf_counter()
    means = work.means(part, layers, task, last=False)
    _wait(work.device)
    passed = time.perf_counter()
    for path, layer in layers.items():
        if path in means:
            work.fit(path, layer, [means[path]] * len(experts))
    ended = time.perf_counter()
    return FeatureCost(len(parts), (passed - started) / given.size, ended - passed, given.size)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
