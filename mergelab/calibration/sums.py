"""Sums of squares: x xᵀ over rows, and squared gradients of single examples."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor

#: Columns of one product of :class:`Outer`. Only the blocks on and above the diagonal are multiplied.
_COLUMNS = 384
#: Per-example gradients that are made at a time on an accelerator, in values.
_AT_ONCE = 1 << 26


class Outer:
    """Σ x xᵀ of rows x, ``parts`` equal slices of x apart from each other: [parts, size/parts, size/parts]."""

    def __init__(self, size: int, parts: int = 1, *, like: Tensor) -> None:
        self.parts, self.each = parts, size // parts
        self.sum = like.new_zeros(parts, self.each, self.each)
        pieces = max(1, round(self.each / _COLUMNS))
        edges = [self.each * i // pieces for i in range(pieces + 1)]
        self._blocks = list(pairwise(edges))

    def add(self, rows: Tensor) -> None:
        """Add the rows [R, size]."""
        for part, matrix in enumerate(self.sum):
            mine = rows[:, part * self.each : (part + 1) * self.each]
            for i, (top, bottom) in enumerate(self._blocks):
                for left, right in self._blocks[i:]:
                    matrix[top:bottom, left:right].addmm_(mine[:, top:bottom].T, mine[:, left:right])

    def add_sum(self, other: Outer) -> None:
        """Add what another of the same size has."""
        self.sum.add_(other.sum)

    def diagonal(self) -> Tensor:
        """The diagonals so far: finite unless a row was not."""
        return self.sum.diagonal(dim1=-2, dim2=-1)

    def mean(self, count: int) -> Tensor:
        """The average over ``count`` rows, exactly symmetric; the sum is given up."""
        upper = self.sum.triu_()  # a product may differ from its transpose by rounding
        whole = upper + upper.mT
        whole.diagonal(dim1=-2, dim2=-1).div_(2)
        return whole.div_(count)


def add_squares(total: Tensor, calls: Iterable[tuple[Tensor, Tensor]]) -> None:
    """total [out, in] += Σ_n (Σ_calls Σ_t g_nt x_ntᵀ)², for calls of a linear map: x [N, T, in] and g [N, T, out]."""
    calls = list(calls)
    if len(calls) == 1 and calls[0][0].shape[1] == 1:  # one row an example: the square of a product of two numbers
        x, g = calls[0]
        total.addmm_(g[:, 0].square().T, x[:, 0].square())
        return
    examples = len(calls[0][0])
    if total.device.type == "cpu":  # one gradient at a time, in a place of its own, stays in the cache
        one = torch.empty_like(total)
        for n in range(examples):
            for i, (x, g) in enumerate(calls):
                one.addmm_(g[n].T, x[n], beta=float(i > 0))
            total.addcmul_(one, one)
        return
    at_once = max(1, _AT_ONCE // total.numel())
    for start in range(0, examples, at_once):
        part = slice(start, start + at_once)
        total.add_(sum_of(g[part].mT @ x[part] for x, g in calls).square_().sum(0))


def sum_of(tensors: Iterable[Tensor]) -> Tensor:
    """Their sum (at least one)."""
    first, *rest = tensors
    for other in rest:
        first = first + other
    return first
