"""From a round's experts to its merge: the running mean, or any static method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..checkpoints import Checkpoint
from ..engine import merge_to_memory, plan
from ..errors import MethodError
from ..methods import get
from ..progress import Stop
from .learner import State

MEAN = "mean"


@dataclass(frozen=True)
class Aggregation:
    """How the experts of a round become one: ``mean``, or a registered static method with its parameters.

    ``scale`` is α: the base goes to base + α·(aggregate − base). Raises MethodError for a method that is not static
    (that looks at data, or merges per input).
    """

    merge_method: str = MEAN
    parameters: Mapping[str, Any] = field(default_factory=dict)
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.merge_method == MEAN:
            if self.parameters:
                raise MethodError("The mean of the experts has no parameters; take the method 'linear' for weights.")
            return
        method = get(self.merge_method)
        if method.data != "none":
            raise MethodError(
                f"The experts of a round cannot be merged by {method.name!r}, which needs data of its own "
                f"({method.data}); take 'mean' or a method without data, such as 'ties'."
            )

    def check(self, experts: Sequence[str]) -> None:
        """MethodError, before anything is trained, where so many experts cannot be merged or a parameter is wrong."""
        if not self.streamed:
            method = get(self.merge_method)
            method.check_models(len(experts), True, method.resolve(self.parameters, list(experts)))

    @property
    def streamed(self) -> bool:
        """Whether one expert at a time is enough."""
        return self.merge_method == MEAN

    def merge(
        self, base: State, experts: Iterable[tuple[str, State | Checkpoint]], *, seed: int = 0, stop: Stop | None = None
    ) -> dict[str, Tensor]:
        """The tensors that the experts have, of the next base.

        With ``mean`` one expert is held at a time, however many there are; other methods stream tensor by tensor
        through the engine, from files where the experts are checkpoints on disk.
        """
        merged = running_mean(experts) if self.streamed else self._engine(base, dict(experts), seed, stop)
        if self.scale == 1:
            return merged
        return {name: torch.lerp(base[name], value, self.scale) for name, value in merged.items()}

    def _engine(self, base: State, experts: Mapping[str, Any], seed: int, stop: Stop | None) -> dict[str, Tensor]:
        double = any(tensor.dtype == torch.float64 for tensor in base.values())
        method = get(self.merge_method)
        moved = next(iter(experts.values()))
        below = None if method.base == "none" else {name: base[name] for name in moved}
        made = plan(
            method, experts, below, self.parameters, seed=seed,
            dtype="float64" if double else None,
        )  # fmt: skip
        return merge_to_memory(made, device="cpu", stop=stop)

    def to_dict(self) -> dict[str, Any]:
        return {"merge_method": self.merge_method, "parameters": dict(self.parameters), "scale": self.scale}


def running_mean(experts: Iterable[tuple[str, State | Checkpoint]]) -> dict[str, Tensor]:
    """The mean of states that come one after the other: a sum and one state are held."""
    total: dict[str, Tensor] = {}
    count = 0
    for _, state in experts:
        count += 1
        for name in state:
            if name in total:
                total[name].add_(state[name])
            else:
                total[name] = state[name].clone()
    if not count:
        raise MethodError("There is no expert to take the mean of.")
    return {name: tensor.div_(count) for name, tensor in total.items()}
