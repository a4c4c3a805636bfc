"""A merge at several iterations of its solver, from one pass: what the slider over iterations moves through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..progress import Progress, Stop
from .plan import Plan

#: Iterations that are worth looking at: none at all is among them, so that a validated choice is never below its init.
GRID = (0, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100)


@dataclass(frozen=True)
class Snapshots:
    """The merged weights at every iteration of ``grid``, on disk, and what the solver wrote down about every tensor.

    ``folder`` holds one safetensors file per iteration (``iteration-00010.safetensors``). ``log``: one mapping a
    tensor, in the tensors' order.
    """

    folder: Path
    grid: tuple[int, ...]
    plan: Plan
    log: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)

    def state(self, k: int) -> dict[str, Tensor]:
        """The merged state dict after ``k`` iterations; tied names share one tensor. MethodError for another ``k``."""
        raise NotImplementedError

    def close(self) -> None:
        """Delete the files, where the folder was made for them."""


def merge_snapshots(
    plan: Plan,
    grid: Sequence[int] = GRID,
    folder: str | Path | None = None,
    *,
    device: str | torch.device = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Snapshots:
    """Merge once up to the last iteration of ``grid`` and keep the weights at every ``k`` in it.

    The plan's own ``iterations`` is replaced by ``max(grid)``; ``state(k)`` is bit for bit what a merge with
    ``iterations`` k gives. ``folder`` None: a temporary one, deleted with the result. Raises MethodError for a method
    without ``iterations``, for a grid that is empty or holds what is no whole number from 0.
    """
    raise NotImplementedError
