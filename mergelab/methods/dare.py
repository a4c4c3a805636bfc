"""DARE: drop entries at random and rescale what is left, then add up (linear) or elect signs (TIES)."""

from __future__ import annotations

from torch import Tensor

from ._consensus import COMBINE, ELECT, agree
from ._kernels import delta, scale, weight
from .context import Context, bernoulli_
from .declaration import Cost, Parameter, Promises, method

_PAPER = "Language Models are Super Mario: DARE (Yu et al., 2023)"
_URL = "https://arxiv.org/abs/2311.03099"
_DENSITY = Parameter(
    "density", "float", 0.1, (0.0, 1.0), per_model=True, step=0.05,
    help="The share of each task vector that is kept, chosen at random; the paper drops 0.9.",
)  # fmt: skip
_RESCALE = Parameter(
    "rescale", "choice", "probability", ("probability", "l1", "none"),
    help="How what is kept makes up for what is dropped: divided by the density (the paper), scaled to the tensor's "
    "own L1 norm (mergekit), or not at all.",
)  # fmt: skip


def drop(tau: Tensor, density: float, index: int, rescale: str, context: Context) -> Tensor:
    """``tau`` with each entry kept with probability ``density`` and rescaled, in place (Yu et al., equation 3)."""
    if density >= 1:
        return tau
    before = float(tau.abs().sum()) if rescale == "l1" else 0.0
    tau.mul_(bernoulli_(context.empty_like(tau), density, context.generator(index)))
    if rescale == "probability" and density > 0:
        tau.div_(density)
    elif rescale == "l1":
        after = float(tau.abs().sum())
        if after > 0:
            tau.mul_(before / after)
    return tau


@method(
    name="dare_linear",
    title="DARE (linear)",
    group="sparse task vectors",
    summary="Drop most entries of each task vector at random, rescale the rest, add them to the base.",
    formula=r"\theta = \theta_0 + \lambda \sum_t w_t\, \frac{m_t \odot \tau_t}{p},\quad m_t \sim \mathrm{Bernoulli}(p)",
    paper=_PAPER,
    url=_URL,
    doc="Keeps a random share p of every task vector, divided by p so that the sum stays the same on average, which "
    "makes experts overlap less. It helps for fine-tuned language models, whose small changes are very redundant. "
    "Large changes do not survive the rescaling at low densities, and the result depends on the seed: look at "
    "several.",
    base="required",
    parameters=(
        _DENSITY,
        weight("How much of this model's task vector is added."),
        scale(1.0, "Scales the sum of the task vectors; with eight experts 0.1 to 0.4 is usual."),
        _RESCALE,
    ),
    promises=Promises(identity={"density": 1.0}, zero={"lambda": 0.0}, random=True, random_parameters={"density": 0.5}),
    cost=Cost(copies=4, work=5),
)
def dare_linear(
    base: Tensor, experts: list[Tensor], *, context: Context, density: list[float], weight: list[float], rescale: str
) -> Tensor:
    """Σ w_t DARE(τ_t)."""
    total = context.zeros_like(base)
    for index, expert in enumerate(experts):
        if weight[index]:
            total.add_(drop(delta(base, expert, context), density[index], index, rescale, context), alpha=weight[index])
    return total


@method(
    name="dare_ties",
    title="DARE (TIES)",
    group="sparse task vectors",
    summary="Drop most entries of each task vector at random, rescale, elect signs, average the entries that agree.",
    formula=r"\theta = \theta_0 + \lambda \operatorname{mean}_{t:\,\operatorname{sgn}\hat\tau_t = s}\hat\tau_t,\quad "
    r"\hat\tau_t = \frac{m_t \odot \tau_t}{p},\quad m_t \sim \mathrm{Bernoulli}(p)",
    paper=_PAPER,
    url=_URL,
    doc="DARE's random dropping takes the place of TIES' trimming; the sign election and the mean of what agrees "
    "follow. It helps where TIES does, when large entries alone do not carry a task. At low densities few experts "
    "meet at an entry, so the election decides little and the rescaled entries are averaged over few voters.",
    base="required",
    parameters=(
        _DENSITY,
        weight("How much this model's entries count among those that agree."),
        scale(1.0, "Scales the merged task vector."),
        _RESCALE,
        ELECT,
        COMBINE,
    ),
    promises=Promises(identity={"density": 1.0}, zero={"lambda": 0.0}, equal={"density": 1.0}, random=True,
                      random_parameters={"density": 0.5}),
    cost=Cost(copies=4, copies_per_model=1, work=9),
)  # fmt: skip
def dare_ties(
    base: Tensor,
    experts: list[Tensor],
    *,
    context: Context,
    density: list[float],
    weight: list[float],
    rescale: str,
    elect: str,
    combine: str,
) -> Tensor:
    """The disjoint mean of DARE(τ_t); votes that cancel exactly elect plus."""
    taus = [
        drop(delta(base, expert, context), density[index], index, rescale, context)
        for index, expert in enumerate(experts)
    ]
    return agree(taus, weight, context, elect=elect, combine=combine)
