"""What a kernel is told besides tensors and parameters: the tensor's name, seeded randomness, whole-model numbers."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..statistics import Block


class Scratch(threading.local):
    """Working tensors of one thread, used again for the next tensor: fresh memory costs more than arithmetic."""

    _KEEP = 64 * 2**20  # bytes; larger buffers go back at once

    def __init__(self) -> None:
        self.free: list[Tensor] = []
        self.used: list[Tensor] = []

    def empty_like(self, like: Tensor) -> Tensor:
        """An uninitialised contiguous tensor of this shape, dtype and device, valid until `release`."""
        count = like.numel()
        for index, buffer in enumerate(self.free):
            if buffer.numel() >= count and buffer.dtype == like.dtype and buffer.device == like.device:
                self.used.append(self.free.pop(index))
                break
        else:
            self.used.append(torch.empty(count, dtype=like.dtype, device=like.device))
        return self.used[-1][:count].view(like.shape)

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """All working tensors may be used again."""
        kept = 0
        buffers, self.free, self.used = sorted(self.free + self.used, key=Tensor.numel), [], []
        for buffer in buffers:
            kept += buffer.numel() * buffer.element_size()
            if kept <= self._KEEP:
                self.free.append(buffer)


@dataclass(frozen=True)
class Context:
    """The surroundings of one tensor in a merge.

    ``keys`` identify the models for randomness (their sources), so that a result depends neither on the order of the
    models nor on the order, layout, device or thread in which tensors are worked on. ``survey`` holds what the method's
    survey found.

    For methods that need more: ``statistics`` of this tensor, in the models' order (``None`` where a model has none of
    the kinds asked for), on the device; ``missing``, why there are none, in words; ``start``, the merge that the method
    starts from (the tensor's shape, computing dtype, not to be written to), ``None`` for the average; ``learned``, one
    coefficient per model. ``snapshot(k, weights)`` takes the weights after iteration ``k`` for every ``k`` in ``grid``
    (it copies them at once; iterations after the last one need no call); ``log`` takes one entry of plain data a
    tensor.
    """

    name: str
    keys: Sequence[str] = ()
    seed: int = 0
    survey: Mapping[str, Any] = field(default_factory=dict)
    scratch: Scratch | None = None
    statistics: Sequence[Block | None] = ()
    missing: str = ""
    start: Tensor | None = None
    learned: Sequence[float] | None = None
    snapshot: Callable[[int, Tensor], None] | None = None
    grid: Collection[int] = ()
    log: Callable[[Mapping[str, Any]], None] | None = None

    def empty_like(self, like: Tensor) -> Tensor:
        """A working tensor; a kernel may also return one."""
        return torch.empty_like(like) if self.scratch is None else self.scratch.empty_like(like)

    def zeros_like(self, like: Tensor) -> Tensor:
        """A working tensor of zeros."""
        return self.empty_like(like).zero_()

    def generator(self, model: int) -> torch.Generator:
        """A CPU generator seeded by SHA-256 of (seed, tensor name, key of model number ``model``)."""
        key = self.keys[model] if model < len(self.keys) else str(model)
        digest = hashlib.sha256("\0".join((str(self.seed), self.name, key)).encode("utf-8", "surrogatepass")).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def bernoulli_(mask: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Fill ``mask`` with 1 where a draw succeeds (``probability``, to 2^-32) and 0 elsewhere; the same on every device.

    Integers of the Mersenne Twister are compared with a threshold: twice as fast as drawing floats, and it does not
    take the path through MKL that ``Tensor.bernoulli_`` takes on some builds only.
    """
    count = mask.numel()
    threshold = round(probability * 2**32) - 2**31
    if threshold >= 2**31:
        return mask.fill_(1)
    drawn = torch.empty((count + 1) // 2, dtype=torch.int64).random_(-(2**63), None, generator=generator)
    bits = drawn.view(torch.int32)[:count].view(mask.shape)
    if mask.device.type == "cpu":
        return torch.lt(bits, threshold, out=mask)
    return mask.copy_(bits < threshold)


class Survey(Protocol):
    """Whole-model numbers, found by reading all tensors ``rounds`` times before the merge; never holds the model.

    Within a round `look` is called once per tensor, in any order and from several threads at once, and what it returns
    is given to `collect` by one thread in a fixed order. `key` says on which parameter values the result depends.
    """

    rounds: int

    def key(self) -> tuple[Any, ...]:
        """Equal keys over the same models mean equal results, so that moving another slider costs no new survey."""

    def look(self, round_: int, base: Tensor | None, experts: Sequence[Tensor], context: Context) -> Any:
        """What one tensor contributes in this round (small: counts, sums; no working tensors)."""

    def collect(self, round_: int, found: Any) -> None:
        """Add one tensor's contribution."""

    def end_round(self, round_: int) -> None:
        """All tensors of the round were seen."""

    def result(self) -> Mapping[str, Any]:
        """What kernels get as ``context.survey``."""
