"""RegMean++: RegMean whose inputs come through the layers that are merged already, block after block.

The kernel is RegMean's. What differs is where its Gram matrices come from: see :mod:`mergelab.calibration.through`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ._blocks import TASK_WEIGHT, check_weights, off_diagonal, ridge
from .context import Context
from .declaration import Cost, Parameter, Promises, method
from .regmean import regmean


@method(
    name="regmean_pp",
    title="RegMean++",
    kind="matched",
    group="matched",
    summary="RegMean, with each block's inputs taken through the blocks that are merged already.",
    formula=r"W^l = \Bigl(\sum_t w_t A_t^l\Bigr)^{-1} \sum_t w_t A_t^l W_t^l,\quad "
    r"A_t^l \text{ of inputs that passed } \theta^{1}, \dots, \theta^{l-1}",
    paper="RegMean++ (Nguyen et al., 2025)",
    url="https://arxiv.org/abs/2508.03121",
    doc="Merges a model block by block from its input on: each expert's block sees its own task's inputs as the blocks "
    "merged so far make them, so that later layers are fitted to what the merged model will really feed them, and "
    "earlier mistakes can be made good. It costs about half a forward pass of every example for each block, needs no "
    "labels, and helps where errors of earlier layers add up. It collects its inputs while it merges, so that "
    "statistics of other merges are of no use to it.",
    gives="weights",
    base="optional",
    models_min=2,
    data="unlabelled",
    parameters=(
        off_diagonal(0.9),
        ridge(1e-8),
        Parameter("leftover", "choice", "average", ("average", "init"),
                  help="What tensors that are no linear layer's weight become: the mean of the models, or the init's."),
        Parameter("inputs", "choice", "val", ("val", "test"),
                  help="Validation inputs, or the test inputs themselves (then the result is marked transductive)."),
        Parameter("examples", "int", 256, (1, 1_000_000), slider=(10, 1000),
                  help="At most so many inputs of every task, drawn without a look at their labels."),
        TASK_WEIGHT,
    ),
    promises=Promises(equal={}),
    cost=Cost(copies=7, work=4, products=lambda _values: 2),
    check=lambda values: check_weights(values, "regmean_pp"),
    statistics=lambda _values: ("gram",),
    init=True,
    collects=True,
)  # fmt: skip
def regmean_pp(
    base: Tensor | None, experts: list[Tensor], *, context: Context, inputs: str, examples: int, **values: Any
) -> Tensor:
    """RegMean on these Gram matrices (Nguyen et al., 2025; Jin et al., 2022, equation 2)."""
    del inputs, examples  # they say what is collected
    return regmean.kernel(base, experts, context=context, **values)
