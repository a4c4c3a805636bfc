"""The tables that geometry gives: plain numbers, ready for figures, CSV and JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

Row = dict[str, Any]
Matrix = tuple[tuple["float | None", ...], ...]


@dataclass(frozen=True)
class CosineTable:
    """Cosines between task vectors: ``whole`` [models][models], ``by_layer`` [layers][models][models]."""

    names: tuple[str, ...]
    layers: tuple[str, ...]
    whole: Matrix
    by_layer: tuple[Matrix, ...]

    def layer(self, name: str | None = None) -> Matrix:
        """The matrix of one layer, of the whole model for None."""
        return self.whole if name is None else self.by_layer[self.layers.index(name)]

    def mean_absolute(self) -> tuple[float | None, ...]:
        """Mean |cosine| over the pairs of different models, per layer."""
        return tuple(_mean_pairs(matrix) for matrix in self.by_layer)

    def to_rows(self) -> list[Row]:
        """One row per layer (first ``whole model``) and pair."""
        rows = []
        for layer, matrix in (("whole model", self.whole), *zip(self.layers, self.by_layer, strict=True)):
            for i, a in enumerate(self.names):
                for j in range(i + 1, len(self.names)):
                    rows.append({"layer": layer, "model": a, "other": self.names[j], "cosine": matrix[i][j]})
        return rows


@dataclass(frozen=True)
class NormTable:
    """Norms of task vectors: ``norms`` and ``relative`` (to the base) [models][layers], ``whole`` [models]."""

    names: tuple[str, ...]
    layers: tuple[str, ...]
    base: tuple[float, ...]
    norms: tuple[tuple[float, ...], ...]
    relative: tuple[tuple[float | None, ...], ...]
    whole: tuple[float, ...]
    whole_relative: tuple[float | None, ...]

    def to_rows(self) -> list[Row]:
        """One row per model and layer (first ``whole model``)."""
        rows = []
        for i, name in enumerate(self.names):
            rows.append(
                {"model": name, "layer": "whole model", "norm": self.whole[i], "relative": self.whole_relative[i]}
            )
            for j, layer in enumerate(self.layers):
                rows.append({"model": name, "layer": layer, "norm": self.norms[i][j], "relative": self.relative[i][j]})
        return rows


@dataclass(frozen=True)
class ConflictTable:
    """Sign conflicts: ``rates`` per layer, share of all entries where both signs occur; ``whole`` for the model.

    ``touched`` is the share of entries that at least two models change, ``pairs`` [models][models] the share of
    opposite signs among the entries that both of a pair change.
    """

    names: tuple[str, ...]
    layers: tuple[str, ...]
    rates: tuple[float | None, ...]
    touched: tuple[float | None, ...]
    entries: tuple[int, ...]
    whole: float | None
    pairs: Matrix

    def to_rows(self) -> list[Row]:
        """One row per layer (first ``whole model``)."""
        total = sum(self.entries)
        shared = sum((t or 0.0) * n for t, n in zip(self.touched, self.entries, strict=True)) / total if total else None
        rows = [{"layer": "whole model", "conflict": self.whole, "touched": shared, "entries": total}]
        for layer, rate, touched, entries in zip(self.layers, self.rates, self.touched, self.entries, strict=True):
            rows.append({"layer": layer, "conflict": rate, "touched": touched, "entries": entries})
        return rows


@dataclass(frozen=True)
class Geometry:
    """All three tables over the same models and layers."""

    cosine: CosineTable
    norms: NormTable
    conflict: ConflictTable

    @property
    def names(self) -> tuple[str, ...]:
        return self.cosine.names

    @property
    def layers(self) -> tuple[str, ...]:
        return self.cosine.layers

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain containers (for JSON)."""
        return asdict(self)


def _mean_pairs(matrix: Matrix) -> float | None:
    values = [abs(v) for i, row in enumerate(matrix) for v in row[i + 1 :] if v is not None]
    return sum(values) / len(values) if values else None
