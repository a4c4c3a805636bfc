"""Model families: build a model from a checkpoint, exchange its weights, encode pictures and words."""

from .build import build, config_of
from .family import Family, families, family_of
from .model import BATCH, Model, Weights
from .preprocess import Preprocess

__all__ = ["BATCH", "Family", "Model", "Preprocess", "Weights", "build", "config_of", "families", "family_of"]
