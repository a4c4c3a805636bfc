"""TIES-Merging: trim, elect sign, merge what agrees."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ._consensus import COMBINE, ELECT, agree, votes
from ._kernels import delta, scale, shrink_, weight
from ._select import MagnitudeThresholds, kept_count, kth_smallest
from .context import Context
from .declaration import Cost, Parameter, Promises, Resolved, method


def trimmed(
    base: Tensor,
    experts: Sequence[Tensor],
    densities: Sequence[float],
    thresholds: Sequence[float] | None,
    context: Context,
) -> list[Tensor]:
    """Task vectors with their largest entries only, by ``thresholds`` or else by each tensor's own; ties are kept."""
    out = []
    for index, expert in enumerate(experts):
        tau = delta(base, expert, context)
        if thresholds is not None:
            limit = thresholds[index]
        elif densities[index] >= 1:
            limit = 0.0
        else:
            kept = kept_count(densities[index], tau.numel())
            magnitude = torch.abs(tau, out=context.empty_like(tau)) if kept else tau
            limit = kth_smallest(magnitude, tau.numel() - kept + 1)[0] if kept else math.inf
        out.append(shrink_(tau, limit))
    return out


class TiesSurvey:
    """Thresholds over whole task vectors, then whether more elected signs are positive or negative."""

    def __init__(self, values: Resolved, count: int, dtype: torch.dtype) -> None:
        self.values = values
        self.by_model = values["trim"] == "model"
        self.select = MagnitudeThresholds(values["density"] if self.by_model else [], dtype)
        # Votes can only cancel between two models.
        self.count_signs = values["zero_sum"] == "majority" and count > 1
        self.rounds = self.select.rounds + self.count_signs
        self.balance = 0

    def key(self) -> tuple[Any, ...]:
        weights = self.values["weight"] if self.values["elect"] == "weighted" and self.count_signs else ()
        return (self.values["trim"], tuple(self.values["density"]), self.count_signs, tuple(weights))

    def look(self, round_: int, base: Tensor | None, experts: Sequence[Tensor], context: Context) -> Any:
        assert base is not None
        if round_ < self.select.rounds:
            part = context.empty_like(base)
            return {
                index: self.select.look(round_, index, torch.sub(experts[index], base, out=part))
                for index in self.select.searched
            }
        thresholds = self.select.thresholds if self.by_model else None
        taus = trimmed(base, experts, self.values["density"], thresholds, context)
        total = votes(taus, self.values["weight"], self.values["elect"], context)
        exact = torch.float32 if total.device.type == "mps" else torch.float64
        return int(total.sign_().sum(dtype=exact))

    def collect(self, round_: int, found: Any) -> None:
        if round_ < self.select.rounds:
            self.select.collect(found)
        else:
            self.balance += found

    def end_round(self, round_: int) -> None:
        if round_ < self.select.rounds:
            self.select.end_round(round_)

    def result(self) -> Mapping[str, Any]:
        majority = -1.0 if self.balance < 0 else 1.0
        return {"thresholds": self.select.thresholds if self.by_model else None, "majority": majority}


def _passes(values: Resolved) -> int:
    return 2 * (values["trim"] == "model") + (values["zero_sum"] == "majority")


@method(
    name="ties",
    title="TIES-Merging",
    group="sparse task vectors",
    summary="Keep each task vector's largest entries, elect a sign per entry, average the entries that agree.",
    formula=r"\theta = \theta_0 + \lambda \operatorname{mean}_{t:\,\operatorname{sgn}\hat\tau_t = s}\hat\tau_t,\quad "
    r"s = \operatorname{sgn}\textstyle\sum_t \hat\tau_t,\quad \hat\tau_t = \operatorname{top}_{k}(\tau_t)",
    paper="TIES-Merging (Yadav et al., 2023)",
    url="https://arxiv.org/abs/2306.01708",
    doc="Drops the small entries of every task vector, which are mostly noise, and lets the rest vote on each entry's "
    "sign, so that tasks do not cancel each other. It helps when many experts conflict, and is less sensitive to "
    "its coefficient than task arithmetic. It costs more time and has little to offer for one or two experts, or "
    "when what a task learned is spread thinly over all weights.",
    base="required",
    parameters=(
        Parameter("density", "float", 0.2, (0.0, 1.0), per_model=True, step=0.05,
                  help="The share of each task vector that is kept: the entries of largest magnitude."),
        scale(1.0, "Scales the merged task vector; 0.8 to 1.8 is usual with combine=mean, about 0.3 with sum."),
        weight("How much this model's entries count among those that agree."),
        Parameter("trim", "choice", "model", ("model", "tensor"),
                  help="Whether the largest entries are of the whole model (the paper) or of each tensor (mergekit)."),
        ELECT,
        COMBINE,
        Parameter("zero_sum", "choice", "majority", ("majority", "positive"),
                  help="The sign where votes cancel exactly: what most entries elect (the authors' code), or plus."),
    ),
    promises=Promises(identity={"density": 1.0}, zero={"lambda": 0.0}, equal={"density": 1.0}),
    cost=Cost(copies=4, copies_per_model=1, passes=_passes, work=8),
    survey=TiesSurvey,
)  # fmt: skip
def ties(
    base: Tensor,
    experts: list[Tensor],
    *,
    context: Context,
    density: list[float],
    weight: list[float],
    trim: str,
    elect: str,
    combine: str,
    zero_sum: str,
) -> Tensor:
    """The disjoint mean of the trimmed task vectors (Yadav et al., 2023, algorithm 1)."""
    thresholds = context.survey["thresholds"] if trim == "model" else None
    majority = context.survey["majority"] if zero_sum == "majority" else 1.0
    taus = trimmed(base, experts, density, thresholds, context)
    return agree(taus, weight, context, elect=elect, combine=combine, majority=majority)
