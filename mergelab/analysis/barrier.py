"""The straight line between two models, and how far the loss on it rises above its ends."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..errors import CheckpointError
from .products import State, check_fitting, mixed


@dataclass(frozen=True)
class Barriers:
    """The loss barrier of every task, and ``mean``, that of the tasks' mean loss (at most the barriers' mean)."""

    tasks: Mapping[str, float]
    mean: float


def line(one: State, two: State, alphas: Iterable[float]) -> Iterator[tuple[float, dict[str, Tensor]]]:
    """(α, (1 − α)·one + α·two) for every α, one model at a time, in the dtypes of ``one``.

    Tensors that are not floating-point are those of ``one``. Raises CheckpointError at once where the two do not fit.
    """
    check_fitting([("the first model", one), ("the second model", two)])
    return ((alpha, mixed((one, two), (1 - alpha, alpha))) for alpha in alphas)


def barrier(alphas: Sequence[float], losses: Sequence[float]) -> float:
    """max_α [loss(α) − chord(α)], the chord being the straight line between the losses at the first and the last α.

    The error barrier of Entezari et al. (2021), in the losses' unit; at least 0, from the ends themselves. Raises
    CheckpointError unless α rises from place to place and every loss is a finite number.
    """
    if len(alphas) != len(losses) or len(alphas) < 2:
        raise CheckpointError(
            f"A barrier needs one loss for every place, and two places at least; there are {len(alphas)} places and "
            f"{len(losses)} losses."
        )
    if any(after <= before for before, after in itertools.pairwise(alphas)):
        raise CheckpointError("The places on a line must rise from one to the next.")
    for alpha, loss in zip(alphas, losses, strict=True):
        if not math.isfinite(loss):
            raise CheckpointError(f"The loss at {alpha:g} is {loss}, so there is no barrier to measure.")
    slope = (losses[-1] - losses[0]) / (alphas[-1] - alphas[0])
    inside = zip(alphas[1:-1], losses[1:-1], strict=True)
    return max([0.0, *(loss - losses[0] - slope * (alpha - alphas[0]) for alpha, loss in inside)])


def barriers(alphas: Sequence[float], curves: Mapping[str, Sequence[float]]) -> Barriers:
    """:func:`barrier` of every task's losses and of their mean over the tasks; ``curves`` maps task -> losses."""
    tasks = {task: barrier(alphas, losses) for task, losses in curves.items()}
    if not tasks:
        raise CheckpointError("There is no task whose barrier could be measured.")
    return Barriers(tasks, barrier(alphas, [sum(row) / len(row) for row in zip(*curves.values(), strict=True)]))
