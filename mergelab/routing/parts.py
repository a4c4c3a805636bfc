"""What an expert has beyond the shared model, tensor by tensor, in the form in which it is stored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LowRank:
    """U·diag(s)·V with u ``[m, r]``, s ``[r]`` descending, v ``[r, n]``, shaped back to ``shape``, whose first
    dimension that is not 1 is m and whose others make n. Columns of u and rows of v are orthonormal, up to the storage
    dtype."""

    u: Tensor
    s: Tensor
    v: Tensor
    shape: tuple[int, ...]

    @property
    def rank(self) -> int:
        return int(self.s.shape[0])

    @property
    def numbers(self) -> int:
        """Numbers that are stored: r·(m + n + 1)."""
        return self.u.numel() + self.s.numel() + self.v.numel()

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.u, self.s, self.v))

    def cut(self, rank: int) -> LowRank:
        """The leading ``rank`` singular directions, by reference."""
        return replace(self, u=self.u[:, :rank], s=self.s[:rank], v=self.v[:rank])

    def share(self, u: Tensor, v: Tensor) -> None:
        """Keep these equal tensors in place of its own, so that the numbers are in memory once."""
        if (u.dtype, u.device, v.dtype) == (self.u.dtype, self.u.device, self.v.dtype):
            object.__setattr__(self, "u", u)
            object.__setattr__(self, "v", v)

    def dense(self) -> Tensor:
        """The change it stands for, float32, of ``shape``."""
        return ((self.u.float() * self.s.float()) @ self.v.float()).reshape(self.shape)

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> LowRank:
        u, s, v = (
            t.to(dtype=dtype or t.dtype, device=device or t.device).contiguous() for t in (self.u, self.s, self.v)
        )
        return LowRank(u, s, v, self.shape)


@dataclass(frozen=True, eq=False)
class Dense:
    """The change itself, for vectors and for matrices whose factors would not be smaller."""

    delta: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.delta.shape)

    @property
    def numbers(self) -> int:
        return self.delta.numel()

    @property
    def nbytes(self) -> int:
        return self.delta.numel() * self.delta.element_size()

    def share(self, delta: Tensor) -> None:
        """Keep this equal tensor in place of its own, so that the numbers are in memory once."""
        if (delta.dtype, delta.device) == (self.delta.dtype, self.delta.device):
            object.__setattr__(self, "delta", delta)

    def dense(self) -> Tensor:
        return self.delta.float()

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Dense:
        return Dense(self.delta.to(dtype=dtype or self.delta.dtype, device=device or self.delta.device).contiguous())


@dataclass(frozen=True, eq=False)
class Sparse:
    """Kept entries of the flattened change: ``places`` int32 ``[k]`` ascending, ``values`` ``[k]``."""

    places: Tensor
    values: Tensor
    shape: tuple[int, ...]

    @property
    def numbers(self) -> int:
        return self.places.numel() + self.values.numel()

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.places, self.values))

    def dense(self) -> Tensor:
        out = torch.zeros(math.prod(self.shape), device=self.values.device)
        out[self.places.long()] = self.values.float()
        return out.reshape(self.shape)

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Sparse:
        where = device or self.values.device
        return Sparse(self.places.to(where), self.values.to(dtype=dtype or self.values.dtype, device=where), self.shape)


Part: TypeAlias = "LowRank | Dense | Sparse"
#: What one expert has beyond the shared model: tensor name -> part. A tensor that is not named does not differ.
Exclusive: TypeAlias = Mapping[str, Part]
