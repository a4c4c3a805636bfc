"""Short pure functions that several methods share; and the two parameters that most of them have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .declaration import Parameter

LAMBDA_RANGE = (-10.0, 10.0)


def weight(help_: str = "How much this model counts.") -> Parameter:
    """The per-model coefficient."""
    return Parameter(
        "weight", "float", 1.0, (-10.0, 10.0), per_model=True, step=0.05, slider=(0.0, 2.0), help=help_
    )


def scale(default: float, help_: str) -> Parameter:
    """The global coefficient ``lambda`` on the merged task vector."""
    return Parameter("lambda", "float", default, LAMBDA_RANGE, step=0.05, slider=(0.0, 2.0), help=help_)


def weighted_sum(tensors: Iterable[Tensor], weights: Sequence[float], like: Tensor) -> Tensor:
    """Σ w_t x_t, accumulated in place: one output, no stacking."""
    total = torch.zeros_like(like)
    for tensor, weight_ in zip(tensors, weights, strict=True):
        total.add_(tensor, alpha=weight_)
    return total


def weighted_delta(base: Tensor, experts: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ w_t (θ_t − θ0), accumulated in place with one scratch tensor."""
    total = torch.zeros_like(base)
    scratch = torch.empty_like(base)
    for expert, weight_ in zip(experts, weights, strict=True):
        if weight_:
            total.add_(torch.sub(expert, base, out=scratch), alpha=weight_)
    return total


def apply(base: Tensor, delta: Tensor, lambda_: float) -> Tensor:
    """θ0 + λ·τ."""
    return torch.add(base, delta, alpha=lambda_)


def dot(a: Tensor, b: Tensor) -> float:
    """⟨a, b⟩ over all entries, accumulated in float64 where the device has it, in blocks that fit a cache."""
    a, b = a.reshape(-1), b.reshape(-1)
    dtype = torch.float32 if a.device.type == "mps" else torch.float64
    block = 1 << 18
    return float(sum(
        torch.dot(a[start : start + block].to(dtype), b[start : start + block].to(dtype))
        for start in range(0, a.numel(), block)
    ))  # fmt: skip
