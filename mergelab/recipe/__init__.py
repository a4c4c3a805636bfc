"""The recipe: everything that determines a merge, in one object, and its forms."""

from __future__ import annotations

from .checks import DTYPES, Frozen, Scalar, readable_name
from .recipe import ModelEntry, Recipe
from .start import Init

__all__ = ["DTYPES", "Frozen", "Init", "ModelEntry", "Recipe", "Scalar", "readable_name"]
