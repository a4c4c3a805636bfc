"""Model Stock: how far to go from the base to the mean, from the angle between the experts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._kernels import delta, dot
from .context import Context
from .declaration import Cost, Parameter, Promises, method


def ratio(cosine: float, count: int) -> float:
    """t = K·cos / (1 + (K−1)·cos), clamped to [0, 1] (Jang et al., 2024, equation 8)."""
    below = 1.0 + (count - 1) * cosine
    return min(1.0, max(0.0, count * cosine / below)) if below > 1e-6 else 0.0


def mean_cosine(taus: list[Tensor], context: Context) -> float:
    """Mean cosine over all pairs, from the length of the sum of unit vectors; a zero vector has cosine 0 with all."""
    count = len(taus)
    lengths = [math.sqrt(dot(tau, tau)) for tau in taus]
    units = context.zeros_like(taus[0])
    for tau, length in zip(taus, lengths, strict=True):
        if length > 0:
            units.add_(tau, alpha=1.0 / length)
    present = sum(length > 0 for length in lengths)
    return (dot(units, units) - present) / (count * (count - 1))


def _filter_ratios(taus: list[Tensor]) -> Tensor:
    """One ratio per row (output channel), shaped to multiply the tensors."""
    count, first = len(taus), taus[0]
    units = torch.zeros_like(first).flatten(1)
    present = torch.zeros(len(units), dtype=units.dtype, device=units.device)
    for tau in taus:
        rows = tau.flatten(1)
        length = torch.linalg.vector_norm(rows, dim=1)
        units += rows / length.masked_fill(length == 0, 1.0)[:, None]
        present += length > 0
    cosine = (units.square().sum(1) - present) / (count * (count - 1))
    below = 1.0 + (count - 1) * cosine
    ratios = torch.where(below > 1e-6, count * cosine / below.clamp(min=1e-6), torch.zeros_like(below)).clamp(0.0, 1.0)
    return ratios.reshape(-1, *[1] * (first.ndim - 1))


@method(
    name="model_stock",
    title="Model Stock",
    group="geometry",
    summary="Go from the base towards the mean of the experts, as far as the angle between them says.",
    formula=r"\theta = t\,\bar\theta + (1-t)\,\theta_0,\quad t = \frac{K\cos\varphi}{1+(K-1)\cos\varphi}",
    paper="Model Stock (Jang et al., 2024)",
    url="https://arxiv.org/abs/2403.19522",
    doc="Estimates, tensor by tensor, the centre around which fine-tuned models lie, from the mean cosine between their"
    " changes. It helps for several runs on the same task, where two models come close to a soup of many. Experts "
    "of different tasks are nearly orthogonal, the ratio is then near 0, and the result is almost the base.",
    base="required",
    models_min=2,
    parameters=(
        Parameter(
            "filter_wise", "bool", False, help="Take one angle per row (output channel) instead of one per tensor."
        ),
    ),
    promises=Promises(equal={}),
    cost=Cost(copies=3, copies_per_model=1, work=5),
)
def model_stock(base: Tensor, experts: list[Tensor], *, context: Context, filter_wise: bool) -> Tensor:
    """t·mean τ_t with t per tensor, or per row (Jang et al., 2024, section 4)."""
    taus = [delta(base, expert, context) for expert in experts]
    mean = context.zeros_like(base)
    for tau in taus:
        mean.add_(tau, alpha=1.0 / len(taus))
    if filter_wise and base.ndim >= 2:
        return mean.mul_(_filter_ratios(taus))
    return mean.mul_(ratio(mean_cosine(taus, context), len(taus)))
