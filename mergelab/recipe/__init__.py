"""The recipe: everything that determines a merge, in one object, and its forms."""

from __future__ import annotations

from .checks import DTYPES, Frozen, Scalar, readable_name
from .recipe import ModelEntry, Recipe

__all__ = ["DTYPES", "Frozen", "ModelEntry", "Recipe", "Scalar", "readable_name"]
