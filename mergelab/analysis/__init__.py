"""Geometry of task vectors and checkpoints: tensors in, tables of numbers out."""

from .barrier import Barriers, barrier, barriers, line
from .compare import geometry
from .layers import layers_of
from .plane import Plane, grid, plane
from .projection import Projection, project
from .similarity import Similarity, similarity
from .tables import ConflictTable, CosineTable, Geometry, NormTable

__all__ = [
    "Barriers",
    "ConflictTable",
    "CosineTable",
    "Geometry",
    "NormTable",
    "Plane",
    "Projection",
    "Similarity",
    "barrier",
    "barriers",
    "geometry",
    "grid",
    "layers_of",
    "line",
    "plane",
    "project",
    "similarity",
]
