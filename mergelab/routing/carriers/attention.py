"""``nn.MultiheadAttention`` whose projections differ by row."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .active import CannotRoute, Pass
from .linear import own_product, product
from .side import Carrier

_PROJECTIONS = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


class AttentionRows(Carrier):
    """Projections with side paths, then scaled dot products as torch computes them."""

    pair: ClassVar[tuple[str, str] | None] = ("in_proj_weight", "in_proj_bias")
    matrices: ClassVar[frozenset[str]] = frozenset({"in_proj_weight", *_PROJECTIONS})
    needs: ClassVar[frozenset[str]] = frozenset({"in_proj_weight", *_PROJECTIONS})
    carries: ClassVar[frozenset[str]] = frozenset({"in_proj_weight", "in_proj_bias", *_PROJECTIONS})

    def forward(  # noqa: PLR0917 - torch's own signature
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        me: Any = self
        side = self._side
        now = side.now()
        if now is None:
            masks = {"key_padding_mask": key_padding_mask, "attn_mask": attn_mask, "is_causal": is_causal}
            return super().forward(
                query, key, value, need_weights=need_weights, average_attn_weights=average_attn_weights, **masks
            )
        if query.ndim != 3 or me.bias_k is not None or me.add_zero_attn:
            raise CannotRoute(side.where, "attention without a batch, or with additional keys, is not dealt with")
        dim = 0 if me.batch_first else 1
        q, k, v = self._project(query, key, value, now, dim)
        if dim:
            q, k, v = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
        heads = me.num_heads
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        mask = _mask(attn_mask, key_padding_mask, q, k)
        if is_causal and mask is None:
            mask = torch.full((q.shape[2], k.shape[2]), float("-inf"), dtype=q.dtype, device=q.device).triu_(1)
        seen: Tensor | None = None
        if need_weights:
            scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
            seen = (scores if mask is None else scores + mask).softmax(-1)
            mixed = seen @ v
            seen = seen.mean(1) if average_attn_weights else seen
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        mixed = mixed.transpose(1, 2).flatten(2)
        out = own_product(me.out_proj, mixed, now, dim=0)
        return (out.transpose(0, 1) if dim else out), seen

    def _project(self, query: Tensor, key: Tensor, value: Tensor, now: Pass, dim: int) -> tuple[Tensor, ...]:
        own, side = self._parameters, self._side
        fused, bias = own.get("in_proj_weight"), own.get("in_proj_bias")
        matrix, vector = side.matrix("in_proj_weight"), side.vector("in_proj_bias")
        at: Any = {"now": now, "where": side.where, "dim": dim}
        if fused is not None and query is key and key is value:
            at["fold"] = side.folds.get("in_proj_weight")
            return product(query, fused, bias, matrix=matrix, vector=vector, **at).chunk(3, -1)
        out = []
        width = query.shape[-1]
        for i, x in enumerate((query, key, value)):
            low, high = i * width, (i + 1) * width
            if fused is not None:
                weight: Tensor | None = fused[low:high]
                part = None if matrix is None else matrix.part(low, high)
            else:
                weight, part = own[_PROJECTIONS[i]], side.matrix(_PROJECTIONS[i])
            assert weight is not None
            piece = None if bias is None else bias[low:high]
            shift = None if vector is None else vector.part(low, high)
            out.append(product(x, weight, piece, matrix=part, vector=shift, **at))
        return tuple(out)


def _mask(attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """Both masks as one that is added to the scores [B, heads, L, S]; True hides, as in torch's module."""
    rows, heads = q.shape[:2]
    total: Tensor | None = None
    if attn_mask is not None:
        total = _additive(attn_mask, q)
        if total.ndim == 3:
            total = total.view(rows, heads, q.shape[2], k.shape[2])
    if padding is not None:
        hidden = _additive(padding, q).view(rows, 1, 1, k.shape[2])
        total = hidden if total is None else total + hidden
    return total


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, float("-inf"))
    return mask.to(like.dtype)
