"""Alternating Tuning and Merging (Zhou et al., 2024, arXiv 2411.03055): tune every task from the current model, merge,
repeat.

With all tasks in every round and the mean, this is federated averaging with every client taking part (FedAvg; local
SGD): merging after every step is joint training, merging once at the end is a one-shot merge, and rounds lie between.
Two uses of one algorithm: from the base on training data, in place of multi-task training where data may not be shared
(PA-ATM), and from any merge on a few labelled validation items (PH-ATM).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..checkpoints import Checkpoint
from ..errors import MergeLabError
from ..progress import Stop
from .aggregate import Aggregation
from .learner import State

#: A round's loss counts as having risen when it did so by more than this share of the first round's.
_RISE = 0.01


@dataclass(frozen=True)
class Tuned:
    """One task's expert of a round: its ``weights``, and ``log`` as plain data with at least ``start_loss``, the mean
    loss of the round's base on the task's data before any step."""

    task: str
    weights: State | Checkpoint
    log: Mapping[str, Any]


@dataclass(frozen=True)
class Round:
    """A round that ended: the next base, its number from 1, each task's log, and seconds."""

    number: int
    base: dict[str, Tensor]
    logs: Mapping[str, Mapping[str, Any]]
    seconds: float
    aggregate_seconds: float


def rounds(
    base: State,
    tune: Callable[[int, State], Iterable[Tuned]],
    aggregation: Aggregation,
    *,
    first: int = 1,
    last: int,
    seed: int = 0,
    history: Sequence[Mapping[str, float]] = (),
    stop: Stop | None = None,
) -> Iterator[Round]:
    """The rounds ``first`` to ``last``, one at a time: θ_k = θ_{k−1} + α·(aggregate(θ_1 … θ_T) − θ_{k−1}).

    ``tune(k, base)`` gives every task's expert of round k, each trained from that same base; nothing of a round is
    held but the running mean where that is the aggregation. ``history``: the tasks' losses at the
    starts of earlier rounds, where a run goes on.

    Raises MergeLabError when rounds diverge (see :func:`check`).
    """
    losses, now = list(history), dict(base)
    for number in range(first, last + 1):
        started = time.perf_counter()
        logs: dict[str, Mapping[str, Any]] = {}

        def experts(number: int = number, now: State = now, logs: dict[str, Any] = logs) -> Iterator[tuple[str, Any]]:
            for found in tune(number, now):
                logs[found.task] = found.log
                yield found.task, found.weights

        arriving = _Timed(experts())
        began = time.perf_counter()
        now = {**now, **aggregation.merge(now, arriving, seed=seed + number, stop=stop)}
        merging = time.perf_counter() - began - arriving.seconds
        losses.append({task: float(log["start_loss"]) for task, log in logs.items()})
        check(losses, number)
        yield Round(number, now, logs, time.perf_counter() - started, merging)


def check(history: Sequence[Mapping[str, float]], number: int) -> None:
    """Say so when rounds diverge: the loss that they start from is not finite, or rose twice running and is above where
    the run began (short rounds go up and down a little on their way down).

    ``history``: each round's loss by task before any step; means are over the tasks that all compared rounds have.
    """
    last = math.fsum(history[-1].values()) / len(history[-1])
    if not math.isfinite(last):
        raise MergeLabError(f"Round {number} starts from a loss of {last}: the merge diverged. {_CURE}")
    compared = [history[0], *history[-3:]]
    tasks = set.intersection(*(set(losses) for losses in compared))
    if len(history) < 3 or not tasks:
        return
    first, *three = (math.fsum(losses[task] for task in tasks) / len(tasks) for losses in compared)
    if three[2] > max(three[1] + _RISE * first, first) and three[1] > three[0] + _RISE * first:
        raise MergeLabError(
            f"The rounds diverge: the mean loss that they start from rose twice running ({three[0]:.4g}, "
            f"{three[1]:.4g}, {three[2]:.4g} before round {number}). {_CURE}"
        )


_CURE = "Lower the rate or the scale α, or take fewer steps a round; the last good round is kept."


class _Timed:
    """Passes items on and counts the seconds that making them took."""

    def __init__(self, items: Iterator[tuple[str, Any]]) -> None:
        self._items, self.seconds = items, 0.0

    def __iter__(self) -> _Timed:
        return self

    def __next__(self) -> tuple[str, Any]:
        started = time.perf_counter()
        try:
            return next(self._items)
        finally:
            self.seconds += time.perf_counter() - started
