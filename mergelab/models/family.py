"""What a model family is, and the registry of families.

A family knows how one kind of image model is built from its configuration, what its tensors are called, and how
pictures (and, where there is a text side, words) become features. A module of this package that defines ``FAMILY``
is found by itself: adding a family is adding one file.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from .preprocess import Preprocess

#: Turns words into token ids [N, context], int64.
Tokenizer = Callable[[Sequence[str]], Tensor]


class Family(ABC):
    """How one kind of model is built and run. Instances hold no state."""

    name: str
    title: str

    @abstractmethod
    def claims(self, config: Mapping[str, Any]) -> bool:
        """Whether a checkpoint with this configuration belongs to the family."""

    @abstractmethod
    def construct(self, config: Mapping[str, Any], names: Collection[str]) -> nn.Module:
        """The empty module; called on the meta device, so nothing is allocated.

        ``names`` are the checkpoint's tensor names (they tell a vision tower from a whole model). Every number taken
        from ``config`` must be checked here: it comes from a file that anybody may have written.
        """

    @abstractmethod
    def preprocess(self, config: Mapping[str, Any], saved: Mapping[str, Any] | None) -> Preprocess:
        """How pictures are prepared; ``saved`` is the checkpoint's preprocessor_config.json, if it has one."""

    @abstractmethod
    def width(self, module: nn.Module) -> int:
        """The length d of an image's feature vector."""

    @abstractmethod
    def image_features(self, module: nn.Module, pixels: Tensor) -> Tensor:
        """Features [N, d] of prepared pictures [N, 3, R, R]."""

    def image_tower(self, module: nn.Module) -> str | None:
        """Path of the part of the module that pictures pass; None for all of it."""
        del module
        return None

    def canonical(self, name: str) -> str:
        """One spelling for every spelling of a tensor's name, so that old and new checkpoints both fit the module."""
        return name

    def ignores(self, canonical: str) -> bool:
        """Whether a tensor of this name may be missing or left over (it does not take part in the features)."""
        del canonical
        return False

    def buffer(self, name: str, shape: torch.Size) -> Tensor:
        """The value of a buffer that is not in checkpoints (position ids, masks)."""
        raise CheckpointError(f"The {self.title} model has a buffer {name!r} of shape {list(shape)} that is not known.")

    def has_text(self, module: nn.Module) -> bool:
        """Whether the model can embed words next to pictures."""
        del module
        return False

    def tokenizer(self, module: nn.Module, folder: Path | None) -> Tokenizer | None:
        """What turns words into this model's tokens; None when the checkpoint does not say how."""
        del module, folder
        return None

    def text_features(self, module: nn.Module, tokens: Tensor) -> Tensor:
        """Features [N, d] of token ids [N, context], not normalised."""
        del module, tokens
        raise CheckpointError(f"A {self.title} model has no text side.")

    def logit_scale(self, module: nn.Module) -> Tensor | None:
        """The log of the factor on cosines, as CLIP trains it."""
        del module
        return None


@lru_cache(maxsize=1)
def families() -> tuple[Family, ...]:
    """All families of this package, by name."""
    package = importlib.import_module(__package__ or "mergelab.models")
    found = []
    for info in pkgutil.iter_modules(package.__path__):
        family = getattr(importlib.import_module(f"{package.__name__}.{info.name}"), "FAMILY", None)
        if isinstance(family, Family):
            found.append(family)
    return tuple(sorted(found, key=lambda f: f.name))


def family_of(config: Mapping[str, Any] | None, where: str = "The checkpoint") -> Family:
    """The family that a configuration belongs to.

    Raises :class:`~mergelab.errors.CheckpointError` naming the model type and the families there are.
    """
    known = ", ".join(f"{f.name} ({f.title})" for f in families())
    if not isinstance(config, Mapping) or not config:
        raise CheckpointError(
            f"{where} has no config.json (or open_clip_config.json), so it is not known how to run it. "
            f"Put the base's config beside the weights; families: {known}."
        )
    for family in families():
        if family.claims(config):
            return family
    kind = config.get("model_type")
    raise CheckpointError(f"{where} is of the type {str(kind)[:60]!r}, which no family runs. Families: {known}.")


def integer(
    config: Mapping[str, Any], key: str, default: int | None, low: int, high: int, *, where: str = "config.json"
) -> int:
    """A whole number of a configuration, between ``low`` and ``high``; anything else is an error that names the key."""
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise CheckpointError(
            f"{where}: {key} must be a whole number from {low} to {high}, found {str(value)[:40]!r}. "
            "The file is damaged or not of this kind of model."
        )
    return value


def number(
    config: Mapping[str, Any], key: str, default: float, low: float, high: float, *, where: str = "config.json"
) -> float:
    """A number of a configuration, between ``low`` and ``high``."""
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise CheckpointError(f"{where}: {key} must be a number from {low:g} to {high:g}, found {str(value)[:40]!r}.")
    return float(value)


def flag(config: Mapping[str, Any], key: str, default: bool, *, where: str = "config.json") -> bool:
    """A yes or no of a configuration."""
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise CheckpointError(f"{where}: {key} must be true or false, found {str(value)[:40]!r}.")
    return value


def choice(
    config: Mapping[str, Any], key: str, default: str, allowed: Collection[str], *, where: str = "config.json"
) -> str:
    """A word of a configuration, out of ``allowed``."""
    value = config.get(key, default)
    if not isinstance(value, str) or value not in allowed:
        raise CheckpointError(f"{where}: {key} must be one of {sorted(allowed)}, found {str(value)[:40]!r}.")
    return value


def square(config: Mapping[str, Any], key: str, default: int, high: int, *, where: str = "config.json") -> int:
    """The side of a square: a whole number, or a pair of equal ones."""
    value = config.get(key, default)
    if isinstance(value, (list, tuple)) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    return integer({key: value}, key, None, 1, high, where=where)
