"""Normalisations and scalings whose gain and shift differ by row."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .active import CannotRoute, Pass
from .side import Carrier, Side


def gains(module: Carrier, key: str, now: Pass, ndim: int, *, dim: int = 0, trail: int = 0) -> Tensor | None:
    """A module's own 1-D (or normalised-shape) tensor by row, shaped to broadcast; ``trail`` dimensions follow it."""
    base = module._parameters.get(key)
    stack = module._side.vector(key)
    if stack is None:
        return None if base is None else base.view(*base.shape, *(1,) * trail)
    rows = stack.rows(base, now)
    rows = rows.view(*rows.shape, *(1,) * trail)
    return now.lift(rows, ndim, dim)


def affine(out: Tensor, gain: Tensor | None, shift: Tensor | None) -> Tensor:
    """out·gain + shift in one pass, in place where nothing is recorded for gradients."""
    if gain is None:
        return out if shift is None else out.add_(shift)
    if shift is None:
        return out.mul_(gain)
    if torch.is_grad_enabled():
        return torch.addcmul(shift, out, gain)
    return torch.addcmul(shift, out, gain, out=out)


class LayerNormRows(Carrier):
    """``nn.LayerNorm`` and OpenCLIP's two, which only differ in the precision of a half-precision pass."""

    def forward(self, input: Tensor) -> Tensor:
        side = self._side
        now = side.now()
        if now is None:
            return super().forward(input)
        me: Any = self
        now.check(input, side.where, side.dim, 1 + len(me.normalized_shape))
        wide = input.float() if "Fp32" in type(self).__name__ else input
        out = F.layer_norm(wide, me.normalized_shape, None, None, me.eps)
        gain, shift = (gains(self, k, now, input.ndim, dim=side.dim) for k in ("weight", "bias"))
        return affine(out, gain, shift).to(input.dtype)


class RMSNormRows(Carrier):
    """``nn.RMSNorm``."""

    def forward(self, x: Tensor) -> Tensor:
        side = self._side
        now = side.now()
        if now is None:
            return super().forward(x)
        me: Any = self
        now.check(x, side.where, side.dim, 1 + len(me.normalized_shape))
        out = F.rms_norm(x, me.normalized_shape, None, me.eps)
        return affine(out, gains(self, "weight", now, x.ndim, dim=side.dim), None)


class GroupNormRows(Carrier):
    """``nn.GroupNorm``: one gain and shift per channel, the second dimension."""

    def forward(self, input: Tensor) -> Tensor:
        side = self._side
        now = side.now()
        if now is None:
            return super().forward(input)
        me: Any = self
        now.check(input, side.where)
        out = F.group_norm(input, me.num_groups, None, None, me.eps)
        gain, shift = (gains(self, k, now, input.ndim, trail=input.ndim - 2) for k in ("weight", "bias"))
        return affine(out, gain, shift)


class BatchNormRows(Carrier):
    """Batch normalisation at inference: its gain and shift may differ by row; its statistics are refused when read."""

    def forward(self, input: Tensor) -> Tensor:
        side = self._side
        now = side.now()
        if now is None:
            return super().forward(input)
        me: Any = self
        for key in ("running_mean", "running_var"):
            if key in side.stacks:
                raise CannotRoute(side.names[key], "a variance is not linear in the weights of the experts")
        if me.running_mean is None:
            raise CannotRoute(side.where, "it normalises over the rows of a batch")
        now.check(input, side.where)
        out = F.batch_norm(input, me.running_mean, me.running_var, None, None, False, 0.0, me.eps)
        gain, shift = (gains(self, k, now, input.ndim, trail=input.ndim - 2) for k in ("weight", "bias"))
        return affine(out, gain, shift)


class Elementwise(Carrier):
    """Modules without children that only multiply or add their vectors along the last dimension: RMS norms of
    language models, layer scales. Their own code is run with vectors of shape [B, 1, ..., d] in the vectors' place;
    that this is right is tried out on random numbers, once for each class and number of dimensions."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        side = self._side
        now = side.now()
        if now is None:
            return super().forward(x, *args, **kwargs)
        now.check(x, side.where, side.dim)
        own = self._own
        if x.ndim not in side.extra:
            side.extra[x.ndim] = elementwise(self, own, x.ndim, side)
        if not side.extra[x.ndim]:
            raise CannotRoute(side.where, f"what a {own.__name__} does with it is not known")
        vectors = {k: gains(self, k, now, x.ndim, dim=side.dim) for k in self._parameters}
        return own.forward(_stand_in(self, own, vectors), x, *args, **kwargs)


def _stand_in(module: nn.Module, own: type[nn.Module], tensors: dict[str, Tensor | None]) -> nn.Module:
    """The module with other tensors in its parameters' place, for one call."""
    out = own.__new__(own)
    out.__dict__.update(module.__dict__)
    out.__dict__["_parameters"] = tensors
    return out


def elementwise(module: nn.Module, own: type[nn.Module], ndim: int, side: Side) -> bool:
    """Whether rows with vectors [B, 1, ..., d] come out as each row alone does with its vectors [d]."""
    like = next(p for p in module._parameters.values() if p is not None)
    draw = torch.Generator().manual_seed(0)
    shape = [2] * (ndim - 1) + [len(like)]
    shape[side.dim] = 3
    x = torch.rand(shape, generator=draw).to(like.device, like.dtype).add_(0.5)
    values = {k: torch.rand(3, len(like), generator=draw).to(x) for k, p in module._parameters.items() if p is not None}
    now = Pass(torch.ones(3, 1))
    missing = {k: None for k, p in module._parameters.items() if p is None}
    with torch.no_grad():
        try:
            every = {**missing, **{k: now.lift(v, ndim, side.dim) for k, v in values.items()}}
            got = own.forward(_stand_in(module, own, every), x.clone())
            alone = [
                own.forward(
                    _stand_in(module, own, {**missing, **{k: v[i] for k, v in values.items()}}),
                    x.narrow(side.dim, i, 1).clone(),
                )
                for i in range(3)
            ]
            return bool(torch.allclose(got, torch.cat(alone, side.dim), rtol=1e-3, atol=1e-4))
        except (RuntimeError, TypeError, AttributeError, IndexError, ValueError):
            return False
