"""Lookups in tables that differ by row."""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from .active import CannotRoute, Pass
from .side import Carrier
from .stacks import Matrix


class EmbeddingRows(Carrier):
    """``nn.Embedding``: ids [B, ...], or [1, ...] for ids (positions) that all rows share."""

    matrices: ClassVar[frozenset[str]] = frozenset({"weight"})

    def forward(self, input: Tensor) -> Tensor:
        side = self._side
        now = side.now()
        weight = self._parameters["weight"]
        me: Any = self
        if now is None or me.max_norm is not None:
            if now is not None:
                raise CannotRoute(side.where, "it rescales its table as it reads it (max_norm)")
            return super().forward(input)
        assert weight is not None
        matrix = side.stacks["weight"]
        assert isinstance(matrix, Matrix)
        return lookup(input, weight, matrix, now, where=side.where, dim=side.dim)


def lookup(ids: Tensor, weight: Tensor, matrix: Matrix, now: Pass, *, where: str, dim: int = 0) -> Tensor:
    """Rows ``ids`` of each batch row's own table: [B, ..., d]."""
    rows = now.rows
    if rows > 1 and (ids.ndim < 2 or ids.shape[dim] not in (1, rows)):
        raise CannotRoute(where, f"its ids have the shape {list(ids.shape)}, of which none is the {rows} rows")
    out = F.embedding(ids, weight)
    if rows > 1 and ids.shape[dim] == 1:
        shape = list(out.shape)
        shape[dim] = rows
        out = out.expand(shape).contiguous()
    width = out.shape[-1]
    if matrix.dense is not None:
        picked = matrix.dense_weights(now)
        for i, delta in enumerate(matrix.dense):
            out += F.embedding(ids, delta) * now.lift(picked[:, i : i + 1], out.ndim, dim)
    if matrix.a is not None:
        few = F.embedding(ids, matrix.u) * now.lift(matrix.low_weights(now), out.ndim, dim)
        out.view(-1, width).addmm_(few.view(-1, few.shape[-1]), matrix.a)
    return out
