"""TIES-Merging: trim, elect sign, merge what agrees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ._consensus import COMBINE, ELECT, agree, votes
from ._kernels import apply, scale, weight
from ._select import MagnitudeThresholds, kept_count, kth_smallest
from .context import Context
from .declaration import Cost, Parameter, Promises, Resolved, method


def trim(delta: Tensor, threshold: float | Tensor) -> Tensor:
    """``delta`` with every entry below ``threshold`` in magnitude set to zero, in place; ties are kept."""
    return delta.masked_fill_(delta.abs() < threshold, 0.0)


def trimmed(base: Tensor, experts: Sequence[Tensor], densities: Sequence[float], thresholds: Sequence[float] | None) -> list[Tensor]:
    """Task vectors with their largest entries only: by the model's thresholds, or by each tensor's own."""
    out = []
    for index, expert in enumerate(experts):
        delta = expert - base
        if thresholds is not None:
            limit: float | Tensor = thresholds[index]
        else:
            kept = kept_count(densities[index], delta.numel())
            limit = kth_smallest(delta.abs(), delta.numel() - kept + 1) if kept else float("inf")
        out.append(trim(delta, limit))
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

    def look(self, round_: int, name: str, base: Tensor | None, experts: Sequence[Tensor]) -> Any:  # noqa: ARG002
        assert base is not None
        if round_ < self.select.rounds:
            return self.select.look(round_, [expert - base for expert in experts])
        thresholds = self.select.thresholds if self.by_model else None
        deltas = trimmed(base, experts, self.values["density"], thresholds)
        total = votes(deltas, self.values["weight"], self.values["elect"])
        return int((total > 0).sum()) - int((total < 0).sum())

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
    doc="Drops the small entries of every task vector, which are mostly noise, and lets the rest vote on each entry's sign, so "
    "that tasks do not cancel each other. It helps when many experts conflict, and is less sensitive to its coefficient than "
    "task arithmetic. It costs more time and has little to offer for one or two experts, or when what a task learned is "
    "spread thinly over all weights.",
    base="required",
    parameters=(
        Parameter("density", "float", 0.2, (0.0, 1.0), per_model=True, step=0.05,
                  help="The share of each task vector that is kept: the entries of largest magnitude."),
        scale(1.0, "Scales the merged task vector; 0.8 to 1.8 is usual with combine=mean, about 0.3 with sum."),
        weight("How much this model's entries count among those that agree."),
        Parameter("trim", "choice", "model", ("model", "tensor"),
                  help="Whether the largest entries are chosen over the whole model (the paper) or in each tensor (mergekit)."),
        ELECT,
        COMBINE,
        Parameter("zero_sum", "choice", "majority", ("majority", "positive"),
                  help="The sign where votes cancel exactly: the one that most entries elect (the authors' code) or plus."),
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
    lambda_: float,
    weight: list[float],
    trim: str,
    elect: str,
    combine: str,
    zero_sum: str,
) -> Tensor:
    """θ0 + λ·(disjoint mean of the trimmed task vectors) (Yadav et al., 2023, algorithm 1)."""
    thresholds = context.survey["thresholds"] if trim == "model" else None
    majority = context.survey["majority"] if zero_sum == "majority" else 1.0
    deltas = trimmed(base, experts, density, thresholds)
    return apply(base, agree(deltas, weight, elect=elect, combine=combine, majority=majority), lambda_)
