"""Model Breadcrumbs: neither the smallest nor the largest entries."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import MethodError
from ._kernels import delta, scale, shrink_, weight
from ._select import kth_smallest
from .context import Context
from .declaration import Cost, Parameter, Promises, Resolved, method


def _check(values: Resolved) -> None:
    total = values["drop_low"] + values["drop_high"]
    if total > 1:
        raise MethodError(
            f"drop_low and drop_high of 'breadcrumbs' drop {total:g} of the entries together; at most 1 can be."
        )


def band_(tau: Tensor, drop_low: float, drop_high: float, context: Context) -> Tensor:
    """Zero the ⌊drop_low·n⌋ smallest and ⌊drop_high·n⌋ largest magnitudes of ``tau``, in place; ties are kept."""
    total = tau.numel()
    low, high = int(drop_low * total), int(drop_high * total)
    if low + high >= total:
        return tau.zero_()
    if low + high == 0:
        return tau
    magnitude = torch.abs(tau, out=context.empty_like(tau))
    smallest, largest = kth_smallest(magnitude, low + 1, total - high)
    if high:
        tau.sub_(torch.hardshrink(tau, largest, out=magnitude))  # takes off what is larger
    return shrink_(tau, smallest) if low else tau


@method(
    name="breadcrumbs",
    title="Model Breadcrumbs",
    group="sparse task vectors",
    summary="Add up task vectors without the smallest and the very largest entries of each layer.",
    formula=r"\theta = \theta_0 + \lambda \sum_t w_t\,(m_t \odot \tau_t),\quad "
    r"m_t = [\,q_{\mathrm{low}} \le |\tau_t| \le q_{1-\mathrm{high}}\,]",
    paper="Model Breadcrumbs (Davari & Belilovsky, 2023)",
    url="https://arxiv.org/abs/2312.06795",
    doc="Masks both tails of every layer's change: the smallest entries as noise, the largest as outliers that hurt "
    "other tasks. It helps when many experts are added up and one coefficient should serve any number of them. When"
    " a task lives in a few large entries, dropping those costs accuracy.",
    base="required",
    parameters=(
        Parameter("drop_low", "float", 0.85, (0.0, 1.0), step=0.01,
                  help="The share of entries with the smallest magnitudes that is dropped, tensor by tensor."),
        Parameter("drop_high", "float", 0.007, (0.0, 1.0), step=0.001, slider=(0.0, 0.1),
                  help="The share of entries with the largest magnitudes that is dropped, tensor by tensor."),
        scale(0.3, "Scales the sum of the masked task vectors."),
        weight("How much of this model's task vector is added."),
    ),
    promises=Promises(identity={"drop_low": 0.0, "drop_high": 0.0, "lambda": 1.0}, zero={"lambda": 0.0}),
    cost=Cost(copies=5, work=8),
    check=_check,
)  # fmt: skip
def breadcrumbs(
    base: Tensor, experts: list[Tensor], *, context: Context, drop_low: float, drop_high: float, weight: list[float]
) -> Tensor:
    """Σ w_t m_t⊙τ_t with the masks made per tensor (Davari & Belilovsky, 2023, section 3)."""
    total = context.zeros_like(base)
    for expert, factor in zip(experts, weight, strict=True):
        if factor:
            total.add_(band_(delta(base, expert, context), drop_low, drop_high, context), alpha=factor)
    return total
