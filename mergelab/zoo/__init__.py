"""Zoos: a base, experts fine-tuned from it, and the tasks that they were made for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .layout import Zoo, ZooError, list_zoos, open_zoo, zoo_folders

__all__ = ["Zoo", "ZooError", "build_starter", "build_zoo", "list_zoos", "open_zoo", "zoo_folders"]


def build_starter(out: str | Path, **options: Any) -> Path:
    """Build the starter zoo from packages; see :func:`mergelab.zoo.build.build_starter`."""
    from .build import build_starter as build

    return build(out, **options)


def build_zoo(tasks: str | Path, base: str, **options: Any) -> Path:
    """Build a zoo from a folder of tasks; see :func:`mergelab.zoo.build.build_zoo`."""
    from .build import build_zoo as build

    return build(tasks, base, **options)
