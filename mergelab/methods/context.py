"""What a kernel is told besides tensors and parameters: the tensor's name, seeded randomness, whole-model numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Context:
    """The surroundings of one tensor in a merge.

    ``keys`` identify the models for randomness (their sources), so that a result depends neither on the order of the models
    nor on the order, layout, device or thread in which tensors are worked on. ``survey`` holds what the method's survey found.
    """

    name: str
    keys: Sequence[str] = ()
    seed: int = 0
    survey: Mapping[str, Any] = field(default_factory=dict)

    def generator(self, model: int) -> torch.Generator:
        """A CPU generator seeded by SHA-256 of (seed, tensor name, key of model number ``model``)."""
        key = self.keys[model] if model < len(self.keys) else str(model)
        digest = hashlib.sha256("\0".join((str(self.seed), self.name, key)).encode("utf-8", "surrogatepass")).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def bernoulli(shape: Sequence[int], probability: float, generator: torch.Generator, device: torch.device) -> Tensor:
    """A boolean mask, each element true with ``probability`` (to 2^-32), the same on every device and for every dtype.

    Integers of the Mersenne Twister are compared with a threshold: twice as fast as drawing floats, and it does not take
    the path through MKL that ``Tensor.bernoulli_`` takes on some builds only.
    """
    count = torch.Size(shape).numel()
    threshold = round(probability * 2**32) - 2**31
    if threshold >= 2**31:
        return torch.ones(tuple(shape), dtype=torch.bool, device=device)
    drawn = torch.empty((count + 1) // 2, dtype=torch.int64).random_(-(2**63), None, generator=generator)
    return (drawn.view(torch.int32)[:count] < threshold).reshape(tuple(shape)).to(device)


class Survey(Protocol):
    """Whole-model numbers, found by reading all tensors ``rounds`` times before the merge; never holds the model.

    Within a round `look` is called once per tensor, in any order and from several threads at once, and what it returns is
    given to `collect` by one thread in a fixed order. `key` says on which parameter values the result depends.
    """

    rounds: int

    def key(self) -> tuple[Any, ...]:
        """Equal keys over the same models mean equal results, so that moving another slider costs no new survey."""

    def look(self, round_: int, name: str, base: Tensor | None, experts: Sequence[Tensor]) -> Any:
        """What one tensor contributes in this round (small: counts, sums)."""

    def collect(self, round_: int, found: Any) -> None:
        """Add one tensor's contribution."""

    def end_round(self, round_: int) -> None:
        """All tensors of the round were seen."""

    def result(self) -> Mapping[str, Any]:
        """What kernels get as ``context.survey``."""
