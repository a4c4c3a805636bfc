"""PCGrad over task vectors: where two of them conflict, each loses what points against the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ._kernels import scale, weight, weighted_delta
from ._surgery import gram, projected
from .context import Context
from .declaration import Cost, Parameter, Promises, Resolved, method


class GramSurvey:
    """⟨τ_i, τ_j⟩ over the whole model, in one round."""

    rounds = 1

    def __init__(self, count: int) -> None:
        self.total = torch.zeros(count, count, dtype=torch.float64)

    def key(self) -> tuple[Any, ...]:
        return ()

    def look(self, round_: int, base: Tensor | None, experts: Sequence[Tensor], context: Context) -> Tensor:  # noqa: ARG002
        return gram(experts, base)

    def collect(self, round_: int, found: Tensor) -> None:  # noqa: ARG002
        self.total += found

    def end_round(self, round_: int) -> None:
        pass

    def result(self) -> Mapping[str, Any]:
        return {"gram": self.total}


def _survey(values: Resolved, count: int, dtype: torch.dtype) -> GramSurvey | None:  # noqa: ARG001
    return GramSurvey(count) if values["project"] == "model" else None


def orders_of(count: int, order: str, context: Context) -> list[list[int]]:
    """For each model the others, as given or shuffled; a shuffle knows models by their keys, not by their places."""
    if order == "given":
        return [[j for j in range(count) if j != i] for i in range(count)]
    places = sorted(range(count), key=lambda j: (context.keys[j] if j < len(context.keys) else "", j))
    out = []
    for i in range(count):
        others = [j for j in places if j != i]
        shuffled = torch.randperm(len(others), generator=context.generator(i)).tolist()
        out.append([others[place] for place in shuffled])
    return out


def coefficients(rows: Tensor, weights: Sequence[float], combine: str) -> list[float]:
    """How much of each τ_j is in Σ_i w_i τ_i', or in that divided by Σ |w_i|; ``rows`` [T, T] with τ_i' = Σ_j C_ij τ_j.

    With all weights 0 nothing is in it.
    """
    factors = torch.tensor(weights, dtype=torch.float64)
    total = float(factors.abs().sum()) if combine == "mean" else 1.0
    return [0.0] * len(weights) if total == 0 else ((factors @ rows) / total).tolist()


@method(
    name="pcgrad",
    title="PCGrad",
    group="geometry",
    summary="Take out of each task vector what points against another one, then average them.",
    formula=r"\theta = \theta_0 + \frac{\lambda}{T} \sum_i \tau_i',\quad \tau_i' \leftarrow \tau_i' - "
    r"\frac{\langle\tau_i', \tau_j\rangle}{\lVert\tau_j\rVert^2}\,\tau_j"
    r"\ \text{ for each } j \neq i \text{ with } \langle\tau_i', \tau_j\rangle < 0",
    paper="Gradient surgery for multi-task learning (Yu et al., 2020)",
    url="https://arxiv.org/abs/2001.06782",
    doc="Treats task vectors as the paper treats gradients: where two point against each other, each is projected onto "
    "the other's normal plane, the others in random order. It helps where task vectors conflict, as whole vectors or in"
    " some tensors, for then a plain mean undoes a part of what each task learned. Whole task vectors of different "
    "tasks often have slightly positive products, and then nothing is projected and the result is the plain mean.",
    base="required",
    parameters=(
        scale(1.0, "Scales the combined task vector; with combine=sum and eight experts 0.1 to 0.4 is usual."),
        weight("How much this model's projected task vector counts; others are projected off it whatever its weight."),
        Parameter("combine", "choice", "mean", ("mean", "sum"),
                  help="Whether the projected task vectors are averaged, or added up (as gradients are in the paper)."),
        Parameter("project", "choice", "model", ("model", "tensor"),
                  help="Whether conflicts are those of whole task vectors (the paper) or of each tensor on its own."),
        Parameter("order", "choice", "random", ("random", "given"),
                  help="In which order a task vector meets the others: shuffled by the seed (the paper), or as the "
                  "models are listed, which then matters."),
    ),
    promises=Promises(identity={}, zero={"lambda": 0.0}, equal={}, random=True,
                      random_parameters={"project": "tensor"}),
    cost=Cost(copies=2, passes=lambda values: int(values["project"] == "model"), work=6),
    survey=_survey,
)  # fmt: skip
def pcgrad(
    base: Tensor,
    experts: list[Tensor],
    *,
    context: Context,
    weight: list[float],
    combine: str,
    project: str,
    order: str,
) -> Tensor:
    """Σ_ij w_i C_ij τ_j, for the mean over Σ |w_i| (Yu et al., 2020, algorithm 1, on τ in place of gradients)."""
    whole = project == "model"
    products = context.survey["gram"] if whole else gram(experts, base)
    # One order for the whole model must not depend on which tensor is at hand.
    orders = orders_of(len(experts), order, replace(context, name="") if whole else context)
    return weighted_delta(base, experts, coefficients(projected(products, orders), weight, combine), context)
