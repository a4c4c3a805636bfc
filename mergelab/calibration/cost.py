"""What statistics cost, before they are collected: bytes from shapes, seconds from one batch."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..errors import StatisticsError
from .collect import logits_of, options_of
from .inputs import as_batch
from .labels import CLASS_LIMIT, Labels
from .rest import Forward
from .wanted import Wanted
from .work import Work


@dataclass(frozen=True)
class Estimate:
    """``nbytes``: of the tensors that will be kept, exact; ``seconds``: of ``timed`` examples, scaled to all of them.

    ``memory``: bytes of the sums while collecting (the same, as nothing is kept twice). ``tensors``: how many have
    statistics; ``skipped``: those that will not, and why; ``passes``: backward passes a batch.
    """

    nbytes: int
    seconds: float
    timed: int
    examples: int
    tensors: int
    passes: int = 0
    skipped: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without the reasons."""
        return {
            "bytes": self.nbytes, "seconds": round(self.seconds, 2), "timed_examples": self.timed,
            "examples": self.examples, "tensors": self.tensors, "backward_passes": self.passes,
            "skipped": len(self.skipped),
        }  # fmt: skip


def estimate(
    module: nn.Module,
    batch: Any,
    forward: Forward | None = None,
    *,
    kinds: Collection[str],
    examples: int,
    fisher: str = "empirical",
    class_limit: int = CLASS_LIMIT,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    mask: Any = None,
    **options: Any,
) -> Estimate:
    """What :func:`collect_stats` would take with these arguments for ``examples`` examples.

    One batch is passed once to find out what the model uses, and once more against the clock; its statistics are
    thrown away.
    """
    made = options_of(kinds, **options)
    labels = Labels(fisher, seed, class_limit) if made.fisher else None
    work = Work(module, forward or logits_of, made, labels, mask=mask, dtype=dtype, device=device)
    given = as_batch(batch)
    if not given.size:
        raise StatisticsError("The batch that would be timed is empty.")
    with work.open():
        work.run(given.first(1))
        first = work.passes
        started = time.perf_counter()
        work.run(given)
        if work.device.type == "cuda":
            torch.cuda.synchronize(work.device)
        seconds = time.perf_counter() - started
        wanted = work.wanted
        assert wanted is not None
        passes = work.passes - first
        sizes = _sizes(wanted)
        skipped = dict(wanted.skipped)
    taken = seconds * examples / given.size
    size = sum(sizes.values()) * (torch.finfo(dtype).bits // 8)
    return Estimate(size, taken, given.size, examples, len(sizes), passes, skipped)


def _sizes(wanted: Wanted) -> dict[str, int]:
    """Tensor -> the numbers that a file keeps of it. Layers that take the same input have the same A, kept once."""
    groups: dict[str, set[int | None]] = {}
    for site, tap in wanted.taps.items():
        if tap.factors is not None and site.weight is not None:
            groups.setdefault(site.weight, set()).add(site.group if site.calls == 1 else None)
    kept: set[int] = set()
    sizes: dict[str, int] = {}
    for name, factors in wanted.factors.items():
        assert factors.inputs is not None and factors.mean is not None
        size = 0
        (group, *others) = groups.get(name, {None})
        if group is None or others or group not in kept:
            size += factors.inputs.sum.numel() + factors.mean.numel()
        if group is not None and not others:
            kept.add(group)
        if factors.outputs is not None and factors.reached:
            size += factors.outputs.sum.numel()
        sizes[name] = size
    for name, fisher in wanted.fishers.items():
        if fisher.reached:
            sizes[name] = sizes.get(name, 0) + sum(t.numel() for t in (fisher.diagonal, fisher.full) if t is not None)
    return sizes
