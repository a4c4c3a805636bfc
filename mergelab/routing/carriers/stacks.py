"""The parts of all tasks for one tensor, stacked so that one multiplication serves every row whatever its mixture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..parts import Dense, LowRank, Part
from .active import Pass

#: Numbers in the largest temporary of per-row weights; more rows than fit are taken in chunks.
ROOM = 1 << 24


class Matrix:
    """Parts of a matrix (or of a kernel flattened to one): delta(w) = U·diag(s·w of each rank)·A + sum_t w_t D_t.

    u ``[m, R]``, s ``[R]`` and a ``[R, n]`` stack the factors of all tasks, R being the sum of the ranks; dense
    ``[K, m, n]`` the parts that are not factors. The parts become views of the stacks: nothing is held twice.
    """

    def __init__(self, parts: Sequence[Part | None], like: Tensor) -> None:
        self.shape = tuple(like.shape)
        m, n = self.shape[0], math.prod(self.shape[1:])
        low = [(t, p) for t, p in enumerate(parts) if isinstance(p, LowRank) and p.rank]
        full = [(t, p) for t, p in enumerate(parts) if p is not None and not isinstance(p, LowRank)]
        kept: Any = {"dtype": like.dtype, "device": like.device}
        self.key = tuple((t, p.rank) for t, p in low)
        self.tasks = torch.tensor([t for t, p in low for _ in range(p.rank)], dtype=torch.long, device=like.device)
        self.a: Tensor | None = None
        self.folded = False
        self._low = [p for _, p in low]
        if low:
            self.a, self.u = torch.cat([p.v.to(**kept) for p in self._low]), torch.empty(m, len(self.tasks), **kept)
            self.s = torch.cat([p.s.to(**kept) for p in self._low])
            torch.cat([p.u.to(**kept) for p in self._low], 1, out=self.u)
            self.lend()
        self.dense_tasks = torch.tensor([t for t, _ in full], dtype=torch.long, device=like.device)
        self.dense: Tensor | None = None
        if full:
            self.dense = torch.empty(len(full), m, n, **kept)
            for i, (_, whole) in enumerate(full):
                self.dense[i] = whole.dense().reshape(m, n)
                if isinstance(whole, Dense):
                    whole.share(self.dense[i].view(whole.shape))

    def lend(self) -> None:
        """Let the parts be views of the stacks as they are now."""
        assert self.a is not None
        at = 0
        for part in self._low:
            to = at + part.rank
            part.share(self.u[:, at:to], self.a[at:to])
            at = to

    def low_weights(self, now: Pass) -> Tensor:
        """``[B, R]``: of every row, the weight of each stacked direction, its singular value included."""
        assert self.a is not None
        return now.of(self.tasks, self.key, self.a) * self.s

    def dense_weights(self, now: Pass) -> Tensor:
        """``[B, K]``: of every row, the weight of each dense part."""
        assert self.dense is not None
        return now.of(self.dense_tasks, ("dense", tuple(self.dense_tasks.tolist())), self.dense)

    def rows(self, base: Tensor, now: Pass, low: int, high: int, *, factors: bool = True) -> Tensor:
        """The weights themselves, ``[high - low, m, n]``, of rows ``low`` to ``high``."""
        m, n = self.shape[0], math.prod(self.shape[1:])
        out = base.reshape(1, m, n)
        if self.dense is not None:
            picked = self.dense_weights(now)[low:high]
            out = torch.addmm(base.reshape(1, -1), picked, self.dense.view(len(self.dense), -1)).view(-1, m, n)
        if factors and self.a is not None:
            picked = self.low_weights(now)[low:high]
            out = torch.baddbmm(
                out.expand(len(picked), m, n), self.u * picked[:, None], self.a.expand(len(picked), -1, n)
            )
        return out.expand(high - low, m, n)

    def part(self, low: int, high: int) -> Matrix:
        """The stack for rows ``low`` to ``high`` of the matrix, by reference."""
        out = object.__new__(Matrix)
        out.__dict__.update(self.__dict__)
        out.shape = (high - low, *self.shape[1:])
        if self.a is not None:
            out.u = self.u[low:high]
        if self.dense is not None:
            out.dense = self.dense[:, low:high]
        return out

    def delta(self, weights: Tensor) -> Tensor:
        """sum_t w_t part_t for one mixture ``[T]``."""
        now = Pass(weights[None])
        like = self.a if self.a is not None else self.dense
        if like is None:
            return torch.zeros(self.shape, device=self.tasks.device)
        return self.rows(like.new_zeros(self.shape), now, 0, 1).reshape(self.shape)

    @property
    def tensors(self) -> list[Tensor]:
        return [t for t in (self.a, self.u if self.a is not None else None, self.dense) if t is not None]


class Vector:
    """Parts of a tensor that are small: values ``[K, ...]`` of the tasks that have one."""

    def __init__(self, parts: Sequence[Part | None], like: Tensor) -> None:
        has = [(t, p) for t, p in enumerate(parts) if p is not None]
        self.shape = tuple(like.shape)
        self.key = ("vector", tuple(t for t, _ in has))
        self.tasks = torch.tensor([t for t, _ in has], dtype=torch.long, device=like.device)
        self.values = torch.empty(len(has), *self.shape, dtype=like.dtype, device=like.device)
        self._parts = [p for _, p in has]
        for i, part in enumerate(self._parts):
            self.values[i] = part.dense().reshape(self.shape)
        self.lend()

    def lend(self) -> None:
        """Let the parts be views of the stack as it is now."""
        for i, part in enumerate(self._parts):
            if isinstance(part, Dense):
                part.share(self.values[i].view(part.shape))

    def change(self, now: Pass) -> Tensor:
        """``[B, ...]``: sum_t w_t part_t of every row."""
        picked = now.of(self.tasks, self.key, self.values)
        return (picked @ self.values.reshape(len(self.values), -1)).view(-1, *self.shape)

    def rows(self, base: Tensor | None, now: Pass) -> Tensor:
        """``[B, ...]``: the tensor of every row."""
        if base is None:
            return self.change(now)
        picked = now.of(self.tasks, self.key, self.values)
        return torch.addmm(base.reshape(1, -1), picked, self.values.reshape(len(self.values), -1)).view(-1, *self.shape)

    def part(self, low: int, high: int) -> Vector:
        """The stack for entries ``low`` to ``high`` of a vector."""
        out = object.__new__(Vector)
        out.__dict__.update(self.__dict__)
        out.shape, out.values = (high - low,), self.values[:, low:high]
        return out

    def delta(self, weights: Tensor) -> Tensor:
        """sum_t w_t part_t for one mixture ``[T]``."""
        return self.change(Pass(weights[None]))[0]

    @property
    def tensors(self) -> list[Tensor]:
        return [self.values]


class Fold:
    """A layer's stacked factors with its biases' parts and its bias as further columns.

    outer ``[K, m]``, K = R + (number of bias parts) + (1 if there is a bias): times the scaled columns ``[N, K]`` it
    starts the layer's output in one product, where the plain layer would write its bias. The stacks become its views.
    """

    def __init__(self, matrix: Matrix, vector: Vector | None, bias: Tensor | None, *, flip: bool) -> None:
        assert matrix.a is not None
        self.matrix = matrix
        self.rank = len(matrix.tasks)
        columns, tasks = [matrix.a if flip else matrix.u.t()], [matrix.tasks]
        if vector is not None:
            columns.append(vector.values)
            tasks.append(vector.tasks)
        if bias is not None:
            columns.append(bias.detach()[None])
            tasks.append(matrix.tasks.new_tensor([-1]))
        if flip:
            self.outer = torch.cat(columns)
            matrix.a = self.outer[: self.rank]
        else:
            whole = torch.cat([c.t() for c in columns], 1)
            matrix.u, self.outer = whole[:, : self.rank], whole.t()
        matrix.lend()
        if vector is not None:
            vector.values = self.outer[self.rank : self.rank + len(vector.tasks)]
            vector.lend()
        self.tasks = torch.cat(tasks)
        self.scale = torch.cat([matrix.s, matrix.s.new_ones(len(self.tasks) - self.rank)])
        self.key = ("fold", tuple(self.tasks.tolist()))
        self.inner = matrix.u if flip else matrix.a.t()

    def start(self, flat: Tensor, whole: tuple[int, ...], dim: int, now: Pass) -> Tensor:
        """The output ``[N, m]`` without the shared matrix's share, for inputs ``[N, n]`` of the shape ``whole``."""
        lead, ndim, rank = now.of(self.tasks, self.key, flat) * self.scale, len(whole) + 1, self.rank
        if torch.is_grad_enabled():
            rest = now.lift(lead[:, rank:], ndim, dim).expand(*whole, -1)
            few = (flat @ self.inner).view(*whole, rank) * now.lift(lead[:, :rank], ndim, dim)
            return torch.cat([few, rest], -1).view(len(flat), -1) @ self.outer
        columns = flat.new_empty(len(flat), len(self.outer))
        torch.mm(flat, self.inner, out=columns[:, :rank])
        shaped = columns.view(*whole, -1)
        shaped[..., :rank] *= now.lift(lead[:, :rank], ndim, dim)
        shaped[..., rank:] = now.lift(lead[:, rank:], ndim, dim)
        return columns @ self.outer


Stack = Matrix | Vector
