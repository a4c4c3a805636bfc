"""Sign election and the merge of what agrees (TIES, section 3.2 and 3.3), on deltas that are already sparse."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .context import Context
from .declaration import Parameter

ELECT = Parameter(
    "elect",
    "choice",
    "unweighted",
    ("unweighted", "weighted"),
    help="Whether task vectors elect the sign as they are (the paper) or multiplied by their weights (mergekit).",
)
COMBINE = Parameter(
    "combine",
    "choice",
    "mean",
    ("mean", "sum"),
    help="Whether entries that agree are averaged (the paper) or added up (then lambda should be smaller, about 0.3).",
)


def votes(taus: Sequence[Tensor], weights: Sequence[float], elect: str, context: Context) -> Tensor:
    """Σ_t τ_t, or Σ_t w_t τ_t: its sign is the elected one."""
    total = context.zeros_like(taus[0])
    for tau, weight in zip(taus, weights, strict=True):
        total.add_(tau, alpha=weight if elect == "weighted" else 1.0)
    return total


def agree(
    taus: Sequence[Tensor],
    weights: Sequence[float],
    context: Context,
    *,
    elect: str,
    combine: str,
    majority: float = 1.0,
) -> Tensor:
    """The mean (or sum) of the entries whose sign is the elected one; exact zeros neither vote nor count.

    ``majority`` is the sign that entries take where the votes cancel exactly. The mean is Σ w τ / Σ |w| over the
    entries that agree, so that a negative weight keeps its meaning.
    """
    sign = votes(taus, weights, elect, context).sign_()
    merged, part = context.empty_like(sign), context.empty_like(sign)
    # sign(2·sign + majority): the sign where there is one, the majority's where there is none
    sign.mul_(2.0).add_(majority).sign_()
    merged.zero_()
    count = context.zeros_like(sign) if combine == "mean" else None
    for tau, weight in zip(taus, weights, strict=True):
        if not weight:
            continue
        flip = -1.0 if elect == "weighted" and weight < 0 else 1.0
        # part > 0 exactly where this model's vote has the elected sign
        torch.mul(tau, sign, out=part).mul_(flip).clamp_(min=0)
        merged.add_(part, alpha=weight * flip)
        if count is not None:
            count.add_(part.sign_(), alpha=abs(weight))
    merged.mul_(sign)
    if count is not None:
        # Where nobody agrees both are zero; the smallest normal number keeps 0/0 away.
        merged.div_(count.clamp_(min=torch.finfo(count.dtype).tiny))
    return merged
