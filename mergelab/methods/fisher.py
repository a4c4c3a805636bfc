"""Fisher merging: an average in which every entry is weighted by how much each task's predictions depend on it."""

from __future__ import annotations

import time

from torch import Tensor

from ._blocks import (
    FLOOR_HELP,
    FLOOR_RELATIVE,
    LACKS,
    NORMALIZE,
    TASK_WEIGHT,
    Work,
    check_weights,
)
from ._blocks import fisher as closed_form
from .context import Context
from .declaration import Cost, Parameter, Promises, method


@method(
    name="fisher",
    title="Fisher merging",
    kind="matched",
    group="matched",
    summary="The mean of the models, every entry weighted by the diagonal of each task's Fisher information.",
    formula=r"\theta = \frac{\sum_t w_t F_t \odot \theta_t}{\sum_t w_t F_t},\quad "
    r"F_t = \tfrac1N\textstyle\sum_n (\nabla_\theta \log p(y_n \mid x_n))^2",
    paper="Merging models with Fisher-weighted averaging (Matena and Raffel, 2022)",
    url="https://arxiv.org/abs/2111.09832",
    doc="Averages the models entry by entry and gives each task a say in proportion to how strongly its predictions "
    "depend on that entry, measured by squared gradients on a few labelled examples. It helps over plain averaging "
    "when tasks rely on different weights, and costs one backward pass per example. It looks at each entry alone, so "
    "RegMean and MaTS, which see directions, usually gain more from the same examples.",
    gives="weights",
    base="optional",
    models_min=2,
    data="labelled",
    parameters=(
        TASK_WEIGHT,
        Parameter("floor", "float", 1e-8, (0.0, 1.0), slider=(0.0, 1e-6), help=FLOOR_HELP),
        FLOOR_RELATIVE,
        NORMALIZE,
        Parameter("leftover", "choice", "average", ("average", "init"),
                  help="What tensors without a Fisher become: the mean of the models, or the init's values."),
    ),
    promises=Promises(equal={}),
    cost=Cost(copies=5, copies_per_model=1, work=4),
    check=lambda values: check_weights(values, "fisher"),
    statistics=lambda _values: ("diag",),
    init=True,
)  # fmt: skip
def fisher(
    base: Tensor | None,
    experts: list[Tensor],
    *,
    context: Context,
    weight: list[float],
    floor: float,
    floor_relative: float,
    normalize: str,
    leftover: str,
) -> Tensor:
    """Σ w F θ / Σ w F (Matena & Raffel, 2022, equation 4), the start where no task has any."""
    started = time.perf_counter()
    work = Work(base, experts, weight, context)
    if work.equal:
        return work.same()
    blocks = work.blocks("diag")
    if blocks is None:
        return work.leave(leftover, context.missing or LACKS["diag"])
    out, floored = closed_form(work, blocks, floor=floor, relative=floor_relative, normalize=normalize)
    nothing = not any(float(block.diagonal.max()) for block in blocks if block.diagonal is not None)
    work.log(
        by="closed form", out=out, stopped="no information" if nothing else "", floored=floored,
        seconds=time.perf_counter() - started,
    )  # fmt: skip
    return out
