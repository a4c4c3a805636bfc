"""Sign election and the merge of what agrees (TIES, section 3.2 and 3.3), on deltas that are already sparse."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .declaration import Parameter

ELECT = Parameter(
    "elect",
    "choice",
    "unweighted",
    ("unweighted", "weighted"),
    help="Whether the sign is elected by the task vectors as they are (the paper) or multiplied by their weights (mergekit).",
)
COMBINE = Parameter(
    "combine",
    "choice",
    "mean",
    ("mean", "sum"),
    help="Whether entries that agree are averaged (the paper) or added up (then lambda should be smaller, about 0.3).",
)


def votes(deltas: Sequence[Tensor], weights: Sequence[float], elect: str) -> Tensor:
    """Σ_t τ_t, or Σ_t w_t τ_t: its sign is the elected one."""
    total = torch.zeros_like(deltas[0])
    for delta, weight in zip(deltas, weights, strict=True):
        total.add_(delta, alpha=weight if elect == "weighted" else 1.0)
    return total


def agree(
    deltas: Sequence[Tensor], weights: Sequence[float], *, elect: str, combine: str, majority: float = 1.0
) -> Tensor:
    """The mean (or sum) of the entries whose sign is the elected one; exact zeros neither vote nor count.

    ``majority`` is the sign that entries take where the votes cancel exactly. The mean is Σ w τ / Σ |w| over the entries
    that agree, so that a negative weight keeps its meaning.
    """
    total = votes(deltas, weights, elect)
    sign = torch.sign(total)
    sign[total == 0] = majority
    merged = torch.zeros_like(total)
    count = torch.zeros_like(total) if combine == "mean" else None
    part = torch.empty_like(total)
    for delta, weight in zip(deltas, weights, strict=True):
        if not weight:
            continue
        # part > 0 exactly where this model's vote has the elected sign
        flip = -1.0 if elect == "weighted" and weight < 0 else 1.0
        torch.mul(delta, sign, out=part).mul_(flip).clamp_(min=0)
        merged.add_(part, alpha=weight * flip)
        if count is not None:
            count.add_(part > 0, alpha=abs(weight))
    merged.mul_(sign)
    if count is not None:
        merged.div_(count.masked_fill_(count == 0, 1.0))
    return merged
