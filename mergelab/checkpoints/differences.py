"""In which tensors checkpoints differ, told from adapters' names where that is enough, and read where it is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..progress import Stop
from .adapters import AdapterCheckpoint
from .checkpoint import Checkpoint

if TYPE_CHECKING:
    import torch


def differing(checkpoints: Sequence[Checkpoint], *, stop: Stop | None = None) -> frozenset[str]:
    """The names of tensors whose values are not the same in all checkpoints; tied names count as stored ones.

    Adapters of one base differ in what any of them changes, and nothing is read. Otherwise a tensor is read from one
    checkpoint after the other until one differs, two at a time in memory; dtypes do not matter, only values. A tensor
    that some checkpoint lacks, or has in another shape, differs.
    """
    if len(checkpoints) < 2:
        return frozenset()
    first, *others = checkpoints
    near = [_one_base(first, other) for other in others]
    names = sorted({name for checkpoint in checkpoints for name in checkpoint.infos})
    out = set()
    for name in names:
        if stop is not None:
            stop.check()
        if _differs(name, first, others, near):
            out.add(name)
    return frozenset(out)


def _differs(name: str, first: Checkpoint, others: Sequence[Checkpoint], near: Sequence[bool]) -> bool:
    if any(name not in checkpoint for checkpoint in (first, *others)):
        return True
    # What can be told without reading comes first.
    if any(_changes(first, name) or _changes(other, name) for other, one in zip(others, near, strict=True) if one):
        return True
    ours: torch.Tensor | None = None
    for other, one in zip(others, near, strict=True):
        if one:
            continue
        ours = first[name] if ours is None else ours
        if not _equal(ours, other[name]):
            return True
    return False


def _changes(checkpoint: Checkpoint, name: str) -> bool:
    return isinstance(checkpoint, AdapterCheckpoint) and name in checkpoint.changed


def _one_base(first: Checkpoint, other: Checkpoint) -> bool:
    if not (isinstance(first, AdapterCheckpoint) and isinstance(other, AdapterCheckpoint)):
        return False
    return first.base is other.base or first.base.content_hash == other.base.content_hash


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    import torch

    if a.shape != b.shape:
        return False
    if a.dtype != b.dtype:
        common = torch.promote_types(a.dtype, b.dtype)
        a, b = a.to(common), b.to(common)
    return torch.equal(a, b)
