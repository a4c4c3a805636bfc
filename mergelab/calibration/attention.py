"""``nn.MultiheadAttention`` opened up: its projections computed one by one, so that their inputs and gradients show.

torch computes them inside one function, and on its fast path inside one kernel, where no hook sees them. While opened,
the module computes the same numbers as torch's own forward with dropout off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .sites import SEPARATE, bias_rows

#: ``tell(module, projection, x, y)`` is told each projection ("fused" or a name of SEPARATE) and gives back y.
Tell = Callable[[nn.MultiheadAttention, str, Tensor, Tensor], Tensor]


@contextmanager
def opened(modules: Iterable[nn.MultiheadAttention], tell: Tell) -> Iterator[None]:
    """Within the block these modules show their projections; torch's fast paths are off."""
    fast = torch.backends.mha.get_fastpath_enabled()
    former: list[tuple[nn.Module, Any]] = []
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for module in modules:
            former.append((module, module.__dict__.get("forward")))
            module.__dict__["forward"] = _Forward(module, tell)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for changed, forward in former:
            if forward is None:
                changed.__dict__.pop("forward", None)
            else:
                changed.__dict__["forward"] = forward


class _Forward:
    """The forward of one module."""

    def __init__(self, module: nn.MultiheadAttention, tell: Tell) -> None:
        self.module, self.tell = module, tell

    def __call__(  # noqa: PLR0917 - torch's own signature
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
        m = self.module
        batched = query.ndim == 3
        same = query is key and key is value
        if not batched:
            query, key, value = (t.unsqueeze(0) for t in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not m.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        q, k, v = self._project(query, key, value, same)
        rows = len(q)
        if m.bias_k is not None and m.bias_v is not None:
            k = torch.cat([k, m.bias_k.expand(rows, 1, -1)], 1)
            v = torch.cat([v, m.bias_v.expand(rows, 1, -1)], 1)
        q, k, v = (t.unflatten(-1, (m.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        if m.add_zero_attn:
            k, v = (F.pad(t, (0, 0, 0, 1)) for t in (k, v))
        causal = is_causal and key_padding_mask is None and not need_weights
        mask = _mask(None if causal else attn_mask, key_padding_mask, q, k.shape[2])
        seen: Tensor | None = None
        if need_weights:
            scores = (q * q.shape[-1] ** -0.5) @ k.mT
            seen = (scores if mask is None else scores + mask).softmax(-1)
            mixed = seen @ v
            seen = seen.mean(1) if average_attn_weights else seen
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        out = m.out_proj(mixed.transpose(1, 2).flatten(2))  # a module of its own, hooked like any linear layer
        if not batched:
            return out.squeeze(0), None if seen is None else seen.squeeze(0)
        return (out if m.batch_first else out.transpose(0, 1)), seen

    def _project(self, query: Tensor, key: Tensor, value: Tensor, same: bool) -> tuple[Tensor, ...]:
        m = self.module
        bias = m.in_proj_bias
        if m.in_proj_weight is not None and same:
            return self.tell(m, "fused", query, F.linear(query, m.in_proj_weight, bias)).chunk(3, -1)
        out = []
        for own, x in zip(SEPARATE, (query, key, value), strict=True):
            rows = bias_rows(m, own)
            weight = getattr(m, own) if m.in_proj_weight is None else m.in_proj_weight[rows]
            out.append(self.tell(m, own, x, F.linear(x, weight, None if bias is None else bias[rows])))
        return tuple(out)


def _mask(attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, keys: int) -> Tensor | None:
    """Both masks as one that is added to the scores [B, heads, L, keys]; True hides, as in torch's module.

    Keys that the module adds at the end (bias_k, a zero) are hidden from nobody.
    """
    total: Tensor | None = None
    rows, heads, length = q.shape[:3]
    if attn_mask is not None:
        total = _additive(attn_mask, q)
        total = F.pad(total, (0, keys - total.shape[-1]))
        if total.ndim == 3:
            total = total.view(rows, heads, length, keys) if len(total) != 1 else total.unsqueeze(0)
    if padding is not None:
        hidden = _additive(padding, q)
        hidden = F.pad(hidden, (0, keys - hidden.shape[-1])).view(rows, 1, 1, keys)
        total = hidden if total is None else total + hidden
    return total


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, float("-inf"))
    return mask.to(like.dtype)
