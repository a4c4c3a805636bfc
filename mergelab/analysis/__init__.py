"""Geometry of task vectors: tensors in, tables of numbers out."""

from .compare import geometry
from .layers import layers_of
from .tables import ConflictTable, CosineTable, Geometry, NormTable

__all__ = ["ConflictTable", "CosineTable", "Geometry", "NormTable", "geometry", "layers_of"]
