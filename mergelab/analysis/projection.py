"""Checkpoints on paper: the two directions in which they differ most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..errors import CheckpointError
from .products import State, gram

#: A coordinate below this share of an axis' largest one is rounding, and does not say which side is which.
_NOTHING = 1e-6


@dataclass(frozen=True)
class Projection:
    """Checkpoints in their first two principal directions.

    ``coordinates`` [n][2] in units of parameter distance from the checkpoints' mean; ``explained`` the share of their
    variance in each direction.
    """

    names: tuple[str, ...]
    coordinates: tuple[tuple[float, float], ...]
    explained: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain containers (for figures and JSON)."""
        return asdict(self)


def project(models: Mapping[str, State], base: State) -> Projection:
    """Principal components of whole checkpoints from their n×n Gram matrix; models are never stacked.

    With G_ij = ⟨θ_i − θ̄, θ_j − θ̄⟩ = U Λ Uᵀ the coordinates are the columns of U Λ^½ (classical scaling), the same as
    those of a singular value decomposition of the centred weights. An axis points away from the first checkpoint that
    has a place on it: a path that starts there runs to the right.

    Args:
        models: display name -> θ_i. The base has a place only if it is among them.
        base: subtracted before anything is multiplied, so that small differences of large weights keep their digits.

    Raises:
        CheckpointError: there is no model, or they do not fit together.
    """
    if not models:
        raise CheckpointError("There is no checkpoint to draw.")
    count = len(models)
    differences = torch.cat([-torch.ones(count, 1), torch.eye(count)], dim=1).double()
    products = gram([("the base", base), *models.items()], differences)
    centred = products - products.mean(0) - products.mean(1, keepdim=True) + products.mean()
    values, vectors = torch.linalg.eigh((centred + centred.T) / 2)
    values = values.clamp(min=0)
    total, axes, explained = float(values.sum()), [], []
    for place in (-1, -2):
        value = float(values[place]) if count >= -place else 0.0
        axis = vectors[:, place] * value**0.5 if value > 0 else torch.zeros(count, dtype=torch.float64)
        there = axis[axis.abs() > _NOTHING * axis.abs().max()]
        axes.append((axis * -torch.sign(there[0]) if len(there) else axis).tolist())
        explained.append(value / total if total > 0 else 0.0)
    return Projection(tuple(models), tuple(zip(*axes, strict=True)), (explained[0], explained[1]))
