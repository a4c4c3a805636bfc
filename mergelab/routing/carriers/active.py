"""The weights of the rows that are under way in this thread (or asynchronous task), and in no other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from ...errors import RoutingError

#: Passes under way, by the routed module that they belong to. A context variable: every thread has its own.
_UNDER_WAY: ContextVar[Mapping[object, Pass]] = ContextVar("mergelab_rows", default={})  # noqa: B039 - never written to


class CannotRoute(RoutingError):  # noqa: N818 - what callers ask: whether it can be routed
    """A tensor or module cannot have its own mixture in every row of one batch: which one, and why."""

    def __init__(self, where: str, why: str = "") -> None:
        super().__init__(
            where
            if not why
            else f"{where!r} cannot have its own mixture in every row of a batch: {why}. "
            "Use the inference mode 'group' or 'per_input' for this model."
        )


class Pass:
    """One pass of a routed module: the weights of its rows, and which tensors' parts took part.

    weights: ``[B, T]``, or None as long as the shared model alone is run.
    tensors: names of the tensors whose parts were used so far.
    """

    def __init__(self, weights: Tensor | None, late: tuple[object, Callable[[Tensor], Tensor]] | None = None) -> None:
        self.weights = weights
        self.late = late
        self.tensors: set[str] = set()
        self._spread: dict[Any, Tensor] = {}

    @property
    def rows(self) -> int:
        return 0 if self.weights is None else self.weights.shape[0]

    def of(self, tasks: Tensor, key: Any, like: Tensor) -> Tensor:
        """The weights ``[B, K]`` of the tasks ``[K]``, as ``like`` is; made once per pass for each ``key``.

        Task -1 stands for the shared model, whose weight is 1.
        """
        known = (key, like.dtype)
        found = self._spread.get(known)
        if found is None:
            assert self.weights is not None
            every = torch.cat([self.weights, self.weights.new_ones(self.rows, 1)], 1)
            found = every.to(like.device, like.dtype).index_select(1, tasks % every.shape[1])
            self._spread[known] = found
        return found

    def lift(self, values: Tensor, ndim: int, dim: int = 0) -> Tensor:
        """Values ``[B, ...]`` shaped to broadcast over ``ndim`` dimensions of which ``dim`` holds the rows."""
        rest = values.shape[1:]
        if values.shape[0] == 1:
            return values.reshape(rest)
        return values.view(*(1,) * dim, values.shape[0], *(1,) * (ndim - dim - 1 - len(rest)), *rest)

    def check(self, x: Tensor, where: str, dim: int = 0, least: int = 2) -> None:
        """That dimension ``dim`` of ``x`` holds this pass's rows; one row alone may have any shape."""
        rows = self.rows
        if rows != 1 and (x.ndim < dim + least or x.shape[dim] != rows):
            raise CannotRoute(
                where, f"it works on a tensor of shape {list(x.shape)}, whose dimension {dim} is not the {rows} rows"
            )


def under_way(owner: object) -> Pass | None:
    """The pass of ``owner`` in this thread once its rows have weights, else None."""
    found = _UNDER_WAY.get().get(owner)
    return None if found is None or found.weights is None else found


def begun(owner: object) -> Pass | None:
    """The pass of ``owner`` in this thread, with weights or without."""
    return _UNDER_WAY.get().get(owner)


class Entered:
    """Context in which ``now`` is the pass of ``owner``."""

    def __init__(self, owner: object, now: Pass) -> None:
        self._owner, self._now = owner, now

    def __enter__(self) -> Pass:
        self._token = _UNDER_WAY.set({**_UNDER_WAY.get(), self._owner: self._now})
        return self._now

    def __exit__(self, *_: object) -> None:
        _UNDER_WAY.reset(self._token)


def checked(weights: Tensor, tasks: int) -> Tensor:
    """``weights`` as ``[B, T]``; :class:`~mergelab.errors.RoutingError` for what is not finite or of another shape."""
    if not isinstance(weights, Tensor) or weights.ndim != 2 or weights.shape[1] != tasks or not weights.shape[0]:
        found = list(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
        raise RoutingError(f"The rows' weights must be a tensor of shape [rows, {tasks}], found {found}.")
    weights = weights.detach().float()
    if not torch.isfinite(weights).all():
        raise RoutingError("The rows' weights hold NaN or infinity.")
    return weights
