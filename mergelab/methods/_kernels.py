"""Short pure functions that several methods share; and the two parameters that most of them have."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .context import Context
from .declaration import Parameter

LAMBDA_RANGE = (-10.0, 10.0)


def weight(help_: str = "How much this model counts.") -> Parameter:
    """The per-model coefficient."""
    return Parameter("weight", "float", 1.0, (-10.0, 10.0), per_model=True, step=0.05, slider=(0.0, 2.0), help=help_)


def scale(default: float, help_: str) -> Parameter:
    """The global coefficient ``lambda`` on the merged task vector."""
    return Parameter("lambda", "float", default, LAMBDA_RANGE, step=0.05, slider=(0.0, 2.0), help=help_)


def weighted_sum(tensors: Iterable[Tensor], weights: Sequence[float], like: Tensor) -> Tensor:
    """Σ w_t x_t, accumulated in place: one output, no stacking."""
    total = torch.zeros_like(like)
    for tensor, factor in zip(tensors, weights, strict=True):
        if factor:
            total.add_(tensor, alpha=factor)
    return total


def weighted_delta(base: Tensor, experts: Sequence[Tensor], weights: Sequence[float], context: Context) -> Tensor:
    """Σ w_t (θ_t − θ0), accumulated in place with one working tensor."""
    total, part = context.zeros_like(base), context.empty_like(base)
    for expert, factor in zip(experts, weights, strict=True):
        if factor:
            total.add_(torch.sub(expert, base, out=part), alpha=factor)
    return total


def delta(base: Tensor, expert: Tensor, context: Context) -> Tensor:
    """τ = θ_t − θ0 in a working tensor."""
    return torch.sub(expert, base, out=context.empty_like(base))


def shrink_(values: Tensor, threshold: float) -> Tensor:
    """Zero every entry below ``threshold`` in magnitude, in place; entries equal to it are kept.

    ``threshold`` must be a value of the tensor's dtype. One vectorised pass: hardshrink drops |x| ≤ the float just
    below.
    """
    if threshold <= 0:
        return values
    if math.isinf(threshold):
        return values.zero_()
    below = torch.nextafter(torch.tensor(threshold, dtype=values.dtype), torch.tensor(0.0, dtype=values.dtype))
    return torch.hardshrink(values, float(below), out=values)


def dot(a: Tensor, b: Tensor) -> float:
    """⟨a, b⟩ over all entries, accumulated in float64 where the device has it, in blocks that fit a cache."""
    a, b = a.reshape(-1), b.reshape(-1)
    dtype = torch.float32 if a.device.type == "mps" else torch.float64
    block = 1 << 18 if a.device.type == "cpu" else 1 << 26
    return float(sum(
        torch.dot(a[start : start + block].to(dtype), b[start : start + block].to(dtype))
        for start in range(0, a.numel(), block)
    ))  # fmt: skip


def inner(a: Tensor, b: Tensor) -> float:
    """⟨a, b⟩ over all entries, quicker than `dot`: float32 products of short blocks, added up in float64."""
    a, b = a.reshape(-1), b.reshape(-1)
    if a.device.type != "cpu" or a.dtype != torch.float32:
        return dot(a, b)
    block = 1 << 14
    return sum(float(torch.dot(x, y)) for x, y in zip(a.split(block), b.split(block), strict=True))
