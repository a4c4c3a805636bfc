"""Numbers about predictions: accuracy, its uncertainty, and how it compares with the expert's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

RESAMPLES = 10_000
#: Intervals cover this share.
LEVEL = 0.95


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Share of equal entries of two int64 [N]."""
    return float((predicted == labels).double().mean())


def bootstrap_interval(correct: Tensor | np.ndarray | Sequence[bool], seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of right/wrong items [N] (Efron & Tibshirani 1993, ch. 13).

    The mean of N items drawn with replacement from N, of which k are right, is exactly Binomial(N, k/N) / N, so the
    resamples are drawn from that. Where all items are right, or all wrong, every resample is the same and says
    nothing: the bound on the open side is then the exact one (Clopper & Pearson 1934).
    """
    right = np.asarray(correct, dtype=bool)
    n, k = right.size, int(right.sum())
    if n == 0:
        return (0.0, 1.0)
    tail = (1 - LEVEL) / 2
    if k == n:
        return (tail ** (1 / n), 1.0)
    if k == 0:
        return (0.0, 1 - tail ** (1 / n))
    means = np.random.RandomState(seed % 2**32).binomial(n, k / n, size=RESAMPLES) / n
    low, high = np.quantile(means, [tail, 1 - tail])
    return (float(low), float(high))


def normalised(accuracy_: float, expert: float | None) -> float | None:
    """The ratio to the expert's accuracy on the same items; None where there is no expert or it is never right."""
    return None if not expert else accuracy_ / expert


def mean(values: Sequence[float | None]) -> float | None:
    """The unweighted mean over tasks; None where a value is missing, so that two means never differ in their tasks."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
