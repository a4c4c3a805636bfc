"""Cosines and norms of vectors as they are: task vectors of a round, gradients, drifts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import CheckpointError
from .products import State, gram
from .tables import Matrix


@dataclass(frozen=True)
class Similarity:
    """``cosines`` [n][n], None where a vector is zero; ``norms`` [n]."""

    names: tuple[str, ...]
    cosines: Matrix
    norms: tuple[float, ...]

    def mean_absolute(self) -> float | None:
        """Mean |cosine| over the pairs of different vectors."""
        pairs = [value for i, row in enumerate(self.cosines) for value in row[i + 1 :] if value is not None]
        return sum(map(abs, pairs)) / len(pairs) if pairs else None

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain containers (for figures and JSON)."""
        return asdict(self)


def similarity(vectors: Mapping[str, State]) -> Similarity:
    """⟨τ_i, τ_j⟩ / (‖τ_i‖ ‖τ_j‖) and ‖τ_i‖ over all floating-point entries, in float64, a few entries at a time.

    ``vectors`` are used as they are: no base is subtracted. For layers and sign conflicts of experts of one base there
    is :func:`~mergelab.analysis.geometry`. Raises CheckpointError where they do not fit together, or there is none.
    """
    if not vectors:
        raise CheckpointError("There is no vector to compare.")
    products = gram(list(vectors.items()))
    norms = products.diagonal().sqrt().tolist()
    cosines: list[list[float | None]] = [[None] * len(norms) for _ in norms]
    for i, a in enumerate(norms):
        for j, b in enumerate(norms):
            if a > 0 and b > 0:
                cosines[i][j] = 1.0 if i == j else max(-1.0, min(1.0, float(products[i, j]) / (a * b)))
    return Similarity(tuple(vectors), tuple(map(tuple, cosines)), tuple(norms))
