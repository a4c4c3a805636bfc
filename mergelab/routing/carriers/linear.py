"""Matrix products whose matrix differs by row: ``nn.Linear``, GPT-2's ``Conv1D`` and bare projections.

For a row with mixture w: y = x·(W + sum_t w_t U_t S_t V_t)^T + b + sum_t w_t b_t, computed as one product with W, one
with the stacked V of all tasks, a scaling of the (few) columns by the row's weights, and one with the stacked U that is
accumulated onto the output. Twin-Merging's sum (Lu et al. 2024, equation 5) is thus never formed.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .active import Pass
from .side import Carrier
from .stacks import ROOM, Fold, Matrix, Vector


def product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    matrix: Matrix | None,
    vector: Vector | None,
    now: Pass,
    where: str,
    dim: int = 0,
    flip: bool = False,
    fold: Fold | None = None,
) -> Tensor:
    """x ``[..., n]`` times each row's own matrix: ``weight`` is [m, n], or [n, m] where ``flip``.

    dim: the dimension of ``x`` that holds the rows. fold: the same stacks with biases as columns.
    Raises :class:`CannotRoute` naming ``where`` if that dimension is not the rows.
    """
    now.check(x, where, dim)
    right = weight if flip else weight.t()
    n, m = right.shape
    flat = x.reshape(-1, n)
    whole = (*x.shape[:-1], m)
    heavy = matrix is not None and matrix.dense is not None and _materialise(len(matrix.dense), len(flat) // now.rows)
    if fold is not None:
        out = fold.start(flat, whole[:-1], dim, now)
    elif vector is None and not heavy:
        out = torch.addmm(bias, flat, right) if bias is not None else flat @ right
    else:
        out = flat.new_zeros(len(flat), m)
        if vector is not None:
            out.view(whole).copy_(now.lift(vector.rows(bias, now), x.ndim, dim))
        elif bias is not None:
            out += bias
    if not heavy and (fold is not None or vector is not None):
        out.addmm_(flat, right)
    if matrix is not None and matrix.dense is not None:
        out = _dense(x, weight, matrix, now, out, dim=dim, flip=flip, heavy=heavy)
    if matrix is not None and matrix.a is not None and fold is None:
        inner, outer = (matrix.u, matrix.a) if flip else (matrix.a.t(), matrix.u.t())
        few = flat @ inner
        few.view(*x.shape[:-1], -1).mul_(now.lift(matrix.low_weights(now), x.ndim, dim))
        out.addmm_(few, outer)
    return out.view(whole)


def _materialise(parts: int, tokens: int) -> bool:
    """Whether forming each row's matrix is cheaper than a product with every dense part: from a few tokens a row on."""
    return tokens * (parts - 1) >= 8 * parts


def _dense(
    x: Tensor, weight: Tensor, matrix: Matrix, now: Pass, out: Tensor, *, dim: int, flip: bool, heavy: bool
) -> Tensor:
    """Add the dense parts' side to ``out`` [N, m] (and, where ``heavy``, the shared matrix's product too)."""
    assert matrix.dense is not None
    n = x.shape[-1]
    if not heavy:
        flat = x.reshape(-1, n)
        picked = matrix.dense_weights(now)
        for i, delta in enumerate(matrix.dense):
            scaled = (x * now.lift(picked[:, i : i + 1], x.ndim, dim)).reshape(flat.shape)
            out.addmm_(scaled, delta if flip else delta.t())
        return out
    rows, m = now.rows, out.shape[-1]
    front = (x if rows == 1 else x.movedim(dim, 0)).reshape(rows, -1, n)
    shaped = out.view(*x.shape[:-1], m)
    moved = (shaped if rows == 1 else shaped.movedim(dim, 0)).reshape(rows, -1, m)
    step = max(1, ROOM // weight.numel())
    for low in range(0, rows, step):
        high = min(rows, low + step)
        own = matrix.rows(weight, now, low, high, factors=False)
        moved[low:high].baddbmm_(front[low:high], own if flip else own.transpose(1, 2))
    if moved.data_ptr() != out.data_ptr():  # rows were not the first dimension: moved is a copy
        shaped.copy_(moved.view(rows, *shaped.movedim(dim, 0).shape[1:]).movedim(0, dim))
    return out


class LinearRows(Carrier):
    """``nn.Linear``."""

    matrices: ClassVar[frozenset[str]] = frozenset({"weight"})
    pair: ClassVar[tuple[str, str] | None] = ("weight", "bias")

    def forward(self, input: Tensor) -> Tensor:
        now = self._side.now()
        return super().forward(input) if now is None else own_product(self, input, now, dim=self._side.dim)


class TransposedRows(Carrier):
    """``transformers.pytorch_utils.Conv1D``: a linear layer that keeps its matrix as [in, out]."""

    matrices: ClassVar[frozenset[str]] = frozenset({"weight"})
    pair: ClassVar[tuple[str, str] | None] = ("weight", "bias")
    flip: ClassVar[bool] = True

    def forward(self, x: Tensor) -> Tensor:
        now = self._side.now()
        return super().forward(x) if now is None else own_product(self, x, now, dim=self._side.dim, flip=True)


def own_product(layer: nn.Module, x: Tensor, now: Pass, *, dim: int, flip: bool = False) -> Tensor:
    """A linear layer, with parts or without, on rows that sit in dimension ``dim``."""
    if not isinstance(layer, Carrier):
        return layer(x)
    side = layer._side
    now.tensors |= side.all
    weight, bias = layer._parameters["weight"], layer._parameters["bias"]
    assert weight is not None
    parts: Any = {"matrix": side.matrix("weight"), "vector": side.vector("bias"), "fold": side.folds.get("weight")}
    return product(x, weight, bias, **parts, now=now, where=side.where, dim=dim, flip=flip)
