"""One-shot merges of experts as they are trained, at every epoch count: what alternating is compared with.

Each method merges the experts once; its coefficient α (θ0 + α·(merge − θ0), the merge made with λ = 1) is chosen on
held validation items, and the row with α = 1 stands beside it as untuned.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...checkpoints import load
from ...methods import get
from ...progress import Stop
from ...training.aggregate import MEAN, Aggregation
from .record import mean
from .watch import Watch

#: Held items a task at most on which α is chosen.
HELD = 40
#: Methods that are merged once, and the coefficients that are tried (sums of task vectors want small ones).
METHODS = ("task_arithmetic", "ties", "tsv_m")
_SUMS, _MEANS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0), (0.4, 0.7, 1.0, 1.4, 2.0, 3.0)


def grid_of(method: str) -> tuple[float, ...]:
    """The values of α that are tried for a method; 1 is among them."""
    return _SUMS if method in ("task_arithmetic", "dare_linear", "breadcrumbs") else _MEANS


def looks(limit: int, methods: Sequence[str] = METHODS) -> list[tuple[int, int]]:
    """(models measured, items a task at most) of a round's merges: those tried on held items, those that are shown."""
    return [(sum(len(grid_of(method)) for method in methods), HELD), (1 + 2 * len(methods), limit)]


def merges(
    start: Mapping[str, Tensor], experts: Mapping[str, Path], held: Watch, watch: Watch, *,
    methods: Sequence[str] = METHODS, epochs: float, seed: int = 0, stop: Stop | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """The mean of the experts, and each of ``methods`` with α = 1 and with the α that held items choose."""
    rows = [_row(MEAN, None, False, epochs, watch, merged(MEAN, start, experts, seed, stop), stop)]
    for method in methods:
        made = merged(method, start, experts, seed, stop)
        best, value = choose(start, made, grid_of(method), held, stop)
        for alpha, tuned in ((1.0, False), (best, True)):
            row = _row(method, alpha, tuned, epochs, watch, moved(start, made, alpha), stop)
            rows.append({**row, "held": value} if tuned else row)
    return rows


def choose(
    start: Mapping[str, Tensor], made: Mapping[str, Tensor], grid: Iterable[float], held: Watch, stop: Stop | None
) -> tuple[float, float]:
    """The α of ``grid`` with the best mean accuracy on the held items (the smallest of equal ones), and that."""
    found = {alpha: mean(held.measure(moved(start, made, alpha), stop=stop).accuracy) for alpha in grid}
    best = max(found, key=lambda alpha: (round(found[alpha], 9), -alpha))
    return best, found[best]


def moved(start: Mapping[str, Tensor], made: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """θ0 + α·(θ − θ0)."""
    return {name: torch.lerp(start[name], tensor, alpha) for name, tensor in made.items()}


def merged(
    method: str, start: Mapping[str, Tensor], experts: Mapping[str, Path], seed: int, stop: Stop | None
) -> dict[str, Tensor]:
    """The experts merged once by a method whose λ, where it has one, is 1."""
    known = () if method == MEAN else [parameter.name for parameter in get(method).parameters]
    told = {"lambda": 1.0} if "lambda" in known else {}
    opened = {name: load(path) for name, path in experts.items()}
    return Aggregation(method, told).merge(start, opened.items(), seed=seed, stop=stop)


def _row(  # noqa: PLR0917
    method: str, alpha: float | None, tuned: bool, epochs: float, watch: Watch, state: Mapping[str, Tensor],
    stop: Stop | None,
) -> dict[str, Any]:  # fmt: skip
    seen = watch.measure(state, stop=stop)
    parameters = {} if alpha is None else {"alpha": alpha}
    return {"epochs": epochs, "method": method, "parameters": parameters, "tuned": tuned, "accuracy": seen.accuracy,
            "loss": seen.loss}  # fmt: skip
