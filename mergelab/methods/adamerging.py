"""AdaMerging: coefficients of task vectors, learned from the entropy of outputs on unlabelled inputs.

Here is what the coefficients are applied to; they are learned in :mod:`mergelab.training.adamerging`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import MethodError
from ._consensus import votes
from ._kernels import delta, weighted_sum
from .context import Context
from .declaration import Cost, Parameter, Resolved, method
from .ties import TiesSurvey, trimmed

#: TIES's own settings under which its survey and signs are those of the "++" forms.
_TIES: Mapping[str, Any] = {"trim": "model", "elect": "unweighted", "zero_sum": "majority"}


def adamerging_vectors(
    base: Tensor, experts: Sequence[Tensor], *, split: str, density: float, context: Context
) -> list[Tensor]:
    """The task vectors that coefficients multiply: τ_t, or with ``split="ties"`` its share of what TIES keeps.

    AdaMerging++: entries below the top ``density`` of the whole flattened vector are dropped, signs are elected, and of
    every task vector the entries of the elected sign stay, each in its own vector: there is no disjoint mean (Yang et
    al., 2023, section 3.3, and the authors' ``ties_merging_split``). ``context.survey`` is the method's.
    """
    if split == "none":
        return [delta(base, expert, context) for expert in experts]
    survey = context.survey
    taus = trimmed(base, experts, [density] * len(experts), survey["thresholds"], context)
    sign = votes(taus, [1.0] * len(taus), "unweighted", context).sign_()
    # sign(2·sign + majority): the sign where there is one, the majority's where the votes cancel
    sign.mul_(2.0).add_(survey["majority"]).sign_()
    for tau in taus:
        tau.mul_(sign).clamp_(min=0).mul_(sign)
    return taus


def _survey(values: Resolved, count: int, dtype: torch.dtype) -> TiesSurvey | None:
    """TIES's thresholds and majority sign, where the vectors are split by TIES."""
    if values["split"] != "ties":
        return None
    return TiesSurvey({**_TIES, "density": [values["density"]] * count, "weight": [1.0] * count}, count, dtype)


def _passes(values: Resolved) -> int:
    return 3 if values["split"] == "ties" else 0


def _check(values: Resolved) -> None:
    if not any(values["weight"]):
        raise MethodError(
            "Parameter 'weight' of 'adamerging' is 0 for every model, so there is nothing to learn from; "
            "give at least one task a weight above 0."
        )


@method(
    name="adamerging",
    title="AdaMerging",
    kind="trained",
    group="learned coefficients",
    summary="One coefficient per task, or per task and tensor, learned so that outputs on unlabelled inputs are sure.",
    formula=r"\theta^l = \theta_0^l + \sum_t \lambda_t^l\, \tau_t^l,\quad "
    r"\lambda = \arg\min \sum_t w_t\, \mathbb{E}_{x \in \mathcal{U}_t} H\big(f_{\theta,t}(x)\big)",
    paper="AdaMerging (Yang et al., 2023)",
    url="https://arxiv.org/abs/2310.02575",
    doc="Learns how much of each task vector goes into each tensor by making the merged model's predictions on "
    "unlabelled inputs of every task as certain as it can, with heads and task vectors frozen. It helps most where one "
    "coefficient for all tasks and layers is too coarse, and needs no labels. It takes minutes instead of seconds, "
    "needs inputs of every task, and may make a model sure of the wrong class, which the class counts show.",
    base="required",
    data="unlabelled",
    learns=True,
    parameters=(
        Parameter("per", "choice", "layer", ("task", "layer"),
                  help="One coefficient a task for the whole model, or one a task for every tensor."),
        Parameter("split", "choice", "none", ("none", "ties"),
                  help="The task vectors as they are, or (the ++ forms) only each one's entries that TIES keeps."),
        Parameter("density", "float", 0.2, (0.0, 1.0), step=0.05,
                  help="With split=ties: the share of each task vector that is kept, its largest entries."),
        Parameter("steps", "int", 100, (0, 100_000), slider=(0, 500),
                  help="Optimiser steps; the authors take 500 at rate 0.001."),
        Parameter("rate", "float", 0.01, (1e-6, 1.0), slider=(0.001, 0.05),
                  help="Adam's rate: about how far a coefficient moves in one step; fewer steps need a larger one."),
        Parameter("batch", "int", 16, (1, 1024), slider=(1, 64), help="Inputs of every task in one mini-batch."),
        Parameter("batches", "int", 1, (1, 64), slider=(1, 4),
                  help="Mini-batches of every task in one step; the authors take 2."),
        Parameter("start", "float", 0.3, (-2.0, 2.0), slider=(0.0, 1.0),
                  help="Every coefficient before the first step."),
        Parameter("clamp", "choice", "project", ("project", "none"),
                  help="Put coefficients back into 0 to 1 after every step, or leave them free."),
        Parameter("inputs", "choice", "val", ("val", "test"),
                  help="Validation inputs, or the test inputs themselves (the paper's protocol, marked transductive)."),
        Parameter("examples", "int", 1000, (1, 1_000_000), slider=(10, 1000),
                  help="At most so many inputs of every task are used, drawn without a look at their labels."),
        Parameter("weight", "float", 1.0, (0.0, 100.0), per_model=True, step=0.05, slider=(0.0, 2.0),
                  help="How much the entropy of this model's task counts in what is minimised."),
    ),
    cost=Cost(copies=3, copies_per_model=1, passes=_passes, work=2),
    survey=_survey,
    check=_check,
)  # fmt: skip
def adamerging(
    base: Tensor, experts: list[Tensor], *, context: Context, split: str, density: float, **_learning: Any
) -> Tensor:
    """Σ_t λ_t^l τ_t^l with the learned coefficients (Yang et al., 2023, equations 2 and 3)."""
    learned = context.learned
    if learned is None:
        raise MethodError(
            f"Method 'adamerging' has no learned coefficients for tensor {context.name!r}; merge a recipe with a suite "
            "to learn them first, or give the file of an earlier run."
        )
    if len(learned) != len(experts):
        raise MethodError(
            f"Tensor {context.name!r} has {len(learned)} learned coefficients for {len(experts)} models; learn them "
            "again for these models."
        )
    taus = adamerging_vectors(base, experts, split=split, density=density, context=context)
    return weighted_sum(taus, learned, base)
