"""What a router did with inputs whose task is known, as tables of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..tasks.metrics import mean
from .gate import entropy


def router_tables(
    names: Sequence[str], weights: Mapping[str, Tensor], chosen: Mapping[str, Tensor], right: Mapping[str, Tensor]
) -> dict[str, Any]:
    """``accuracy`` (share of inputs whose first choice is their own task, the mean over tasks that have an expert),
    ``confusion`` and ``weights`` (task -> expert -> share of first choices, mean weight), ``entropy`` (task -> mean, in
    nats), ``when_right`` and ``when_wrong`` (accuracy where the first choice was the own task, or was not).

    By task: ``weights`` ``[n, T]``; ``chosen`` ``[n]``, the place of the first choice in ``names``, -1 for none;
    ``right`` ``[n]``, whether the answer was.
    """
    confusion, means, spread = {}, {}, {}
    own: list[Tensor] = [torch.zeros(0, dtype=torch.bool)]
    answers: list[Tensor] = [torch.zeros(0, dtype=torch.bool)]
    for task, rows in weights.items():
        first = chosen[task]
        counts = torch.bincount(first[first >= 0], minlength=len(names))
        confusion[task] = _named(names, counts.float() / max(len(first), 1))
        means[task] = _named(names, rows.mean(0))
        spread[task] = round(float(entropy(rows.clamp(min=0)).mean()), 4)
        if task in names:
            own.append(first == names.index(task))
            answers.append(right[task])
    led, correct = torch.cat(own), torch.cat(answers)
    return {
        "accuracy": mean([float(o.float().mean()) for o in own[1:]]),
        "confusion": confusion,
        "weights": means,
        "entropy": spread,
        "when_right": float(correct[led].float().mean()) if bool(led.any()) else None,
        "when_wrong": float(correct[~led].float().mean()) if bool((~led).any()) else None,
    }


def _named(names: Sequence[str], values: Tensor) -> dict[str, float]:
    return dict(zip(names, (round(v, 4) for v in values.tolist()), strict=True))
