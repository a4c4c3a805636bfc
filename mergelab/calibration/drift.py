"""The closed forms of FeatCal: layers whose outputs on a merged model's features are an expert's on its own.

A linear layer with weight W [out, in] sees features x of the merged model (the student) and x' of the task's expert
(the teacher); x'' = α x' + (1 - α) x. Over all tasks t it gets (Gu et al., 2026, arXiv:2605.13030; the authors' code)

    W (Σ s_t A_t + λ I) = Σ s_t W_t C_t + λ (ρ W_m + (1 - ρ) W_0),   A_t = E x xᵀ, C_t = E x'' xᵀ, s_t = 1 / ‖A_t‖

with W_m merged, W_0 of the base; a bias and a layer norm's scale and shift have such least-squares fits of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import StatisticsError

#: Keeps what no feature reaches where the merge has it, and divisions finite.
TINY = 1e-8
_WIDE = torch.float64


@dataclass(frozen=True)
class DriftSettings:
    """λ (``ridge``), ρ (``anchor``), α (``teacher``); the defaults are the authors' script's (the paper: ρ 2, α 0.3).

    ``biases``, ``norms``: whether these are fitted too. ``others``: what tokens beside the first (class) token count in
    the last block, where only the class token's output is used; give 1 for models that use them all.
    """

    ridge: float = 0.05
    anchor: float = 2.2
    teacher: float = 0.25
    biases: bool = True
    norms: bool = True
    others: float = 0.01

    def __post_init__(self) -> None:
        for name, low, high in (("ridge", 0, 1e6), ("anchor", 0, 10), ("teacher", 0, 1), ("others", 0, 1)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise StatisticsError(f"{name!r} of a feature calibration is {value}; give {low} to {high:g}.")


@dataclass(frozen=True)
class Affine:
    """A layer's weight (a norm's scale) and bias, in one model."""

    weight: Tensor
    bias: Tensor | None


class LinearMeans:
    """Means over rows of what a linear layer sees."""

    def __init__(self, width: int) -> None:
        self.total = 0.0
        self.student = torch.zeros(width, dtype=_WIDE)
        self.teacher = torch.zeros(width, dtype=_WIDE)
        self.both = torch.zeros(width, width, dtype=_WIDE)  # Σ x xᵀ
        self.cross = torch.zeros(width, width, dtype=_WIDE)  # Σ x'' xᵀ

    def add(self, x: Tensor, expert: Tensor, rows: Tensor, teacher: float) -> None:
        """Rows [n, in] of both models, each counting as ``rows`` [n] says."""
        target = teacher * expert + (1 - teacher) * x
        weighted = x * rows[:, None]
        self.total += float(rows.sum())
        self.student += weighted.sum(0).to("cpu", _WIDE)
        self.teacher += (target * rows[:, None]).sum(0).to("cpu", _WIDE)
        self.both += (weighted.T @ x).to("cpu", _WIDE)
        self.cross += (target.T @ weighted).to("cpu", _WIDE)

    @property
    def scale(self) -> float:
        """1 / ‖A‖: a task with large features counts no more than the others."""
        return 1 / max(float(torch.linalg.matrix_norm(self.both / self.total)), TINY)


class NormMeans:
    """Means over rows of what a layer norm makes of a student's features before its scale and shift."""

    def __init__(self, width: int) -> None:
        self.total = 0.0
        self.student = torch.zeros(width, dtype=_WIDE)
        self.energy = torch.zeros(width, dtype=_WIDE)

    def add(self, x: Tensor, rows: Tensor, norm: nn.LayerNorm) -> None:
        """Rows [n, width] that go into ``norm``."""
        z = F.layer_norm(x, tuple(norm.normalized_shape), None, None, norm.eps)
        self.total += float(rows.sum())
        self.student += (z * rows[:, None]).sum(0).to("cpu", _WIDE)
        self.energy += (z.square() * rows[:, None]).sum(0).to("cpu", _WIDE)


def fit_linear(
    means: Sequence[LinearMeans], experts: Sequence[Affine], merged: Affine, base: Affine, settings: DriftSettings
) -> Affine:
    """Weight and bias of a linear layer, float64."""
    ridge, scales = settings.ridge, [m.scale for m in means]
    start = merged.weight.to(_WIDE)
    anchor = _anchor(start, base.weight, settings)
    total, right = torch.zeros_like(means[0].both), torch.zeros_like(start)
    for m, s, expert in zip(means, scales, experts, strict=True):
        total += s / m.total * m.both
        right += s / m.total * (expert.weight.to(_WIDE) @ m.cross)
    right += ridge * anchor - start @ total - ridge * start  # what the merged weight leaves to do
    total.diagonal().add_(ridge + TINY)
    weight = start + torch.linalg.solve(total, right, left=False)
    if merged.bias is None or not settings.biases:
        return Affine(weight, None if merged.bias is None else merged.bias.to(_WIDE))
    rest = ridge * _anchor(merged.bias.to(_WIDE), base.bias, settings)
    for m, s, expert in zip(means, scales, experts, strict=True):
        assert expert.bias is not None
        target = expert.bias.to(_WIDE) + expert.weight.to(_WIDE) @ (m.teacher / m.total)
        rest += s * (target - weight @ (m.student / m.total))
    return Affine(weight, rest / (sum(scales) + ridge))


def fit_norm(
    means: Sequence[NormMeans], experts: Sequence[Affine], merged: Affine, base: Affine, settings: DriftSettings
) -> Affine:
    """Scale and shift of a layer norm, each entry by a system of two equations, float64."""
    assert merged.bias is not None
    ridge = settings.ridge
    right = [ridge * _anchor(merged.weight.to(_WIDE), base.weight, settings),
             ridge * _anchor(merged.bias.to(_WIDE), base.bias, settings)]  # fmt: skip
    energy, mean = torch.zeros_like(right[0]), torch.zeros_like(right[0])
    for m, expert in zip(means, experts, strict=True):
        assert expert.bias is not None
        square, first = m.energy / m.total, m.student / m.total
        scale, shift = expert.weight.to(_WIDE), expert.bias.to(_WIDE)
        energy += square
        mean += first
        right[0] += square * scale + first * shift
        right[1] += first * scale + shift
    a, d = energy + ridge, len(means) + ridge
    determinant = (a * d - mean.square()).clamp(min=TINY)
    return Affine((d * right[0] - mean * right[1]) / determinant, (a * right[1] - mean * right[0]) / determinant)


def _anchor(merged: Tensor, base: Tensor | None, settings: DriftSettings) -> Tensor:
    assert base is not None
    return settings.anchor * merged + (1 - settings.anchor) * base.to(_WIDE)
