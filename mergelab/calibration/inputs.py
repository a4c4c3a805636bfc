"""Batches of examples, whatever a model takes: a tensor, or tensors in tuples and mappings, examples first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import StatisticsError


@dataclass(frozen=True)
class Batch:
    """Examples that a model takes together.

    ``inputs``: what ``forward(module, inputs)`` gets: a tensor, or tensors in (nested) tuples, lists and mappings, each
    with the N examples along its first dimension; anything else is passed on as it is. ``labels`` int64 [N], or [N, T]
    with -100 where nothing is predicted. ``mask`` [N, T], true (or 1) where a token counts and false (or 0) at padding.
    """

    inputs: Any
    labels: Tensor | None = None
    mask: Tensor | None = None

    @property
    def size(self) -> int:
        """The number of examples N."""
        return size_of(self.inputs)

    def take(self, places: Tensor) -> Batch:
        """The examples at ``places`` (indices)."""
        taken = [None if t is None else t[places.to(t.device)] for t in (self.labels, self.mask)]
        return Batch(take(self.inputs, self.size, places), *taken)

    def first(self, count: int) -> Batch:
        """The first ``count`` examples."""
        return self if count >= self.size else self.take(torch.arange(count))

    def to(self, device: torch.device, dtype: torch.dtype) -> Batch:
        """The same batch where the model is, real numbers in its precision."""

        def moved(t: Tensor) -> Tensor:
            return t.to(device=device, dtype=dtype) if t.is_floating_point() else t.to(device)

        labels, mask = (None if t is None else t.to(device) for t in (self.labels, self.mask))
        return replace(self, inputs=mapped(self.inputs, moved), labels=labels, mask=mask)


def as_batch(item: Any) -> Batch:
    """A batch as given, or made of ``(inputs, labels)``."""
    if isinstance(item, Batch):
        return item
    if isinstance(item, tuple) and len(item) == 2 and (item[1] is None or isinstance(item[1], Tensor)):
        return Batch(*item)
    return Batch(item)


def leaves(inputs: Any) -> list[Tensor]:
    """Every tensor in ``inputs``, in order."""
    if isinstance(inputs, Tensor):
        return [inputs]
    parts = inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, (list, tuple)) else ()
    return [tensor for part in parts for tensor in leaves(part)]


def mapped(inputs: Any, change: Callable[[Tensor], Any]) -> Any:
    """``inputs`` with every tensor changed."""
    if isinstance(inputs, Tensor):
        return change(inputs)
    if isinstance(inputs, Mapping):
        return {key: mapped(part, change) for key, part in inputs.items()}
    if isinstance(inputs, (list, tuple)):
        return type(inputs)(mapped(part, change) for part in inputs)
    return inputs


def size_of(inputs: Any) -> int:
    """The number of examples: the length of the first tensor."""
    for tensor in leaves(inputs):
        if tensor.ndim:
            return len(tensor)
    raise StatisticsError(
        f"A batch's inputs hold no tensor ({type(inputs).__name__} was given), so its examples cannot be counted. Give "
        "a tensor, or tensors in a tuple or a mapping."
    )


def take(inputs: Any, size: int, places: Tensor) -> Any:
    """Some examples of ``inputs``; tensors that do not have the examples first are left as they are."""
    return mapped(inputs, lambda t: t[places.to(t.device)] if t.ndim and len(t) == size else t)
