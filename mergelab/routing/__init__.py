"""Routed models: a shared model, what each expert has beyond it, and a router that mixes these parts for every input.

Twin-Merging (Lu et al., NeurIPS 2024, arXiv 2406.15479) and the models it is compared with. The names below are loaded
when they are first used: reading a recipe does not need what running a model needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "PRESETS": "presets",
    "Compression": "compression",
    "Gate": "gate",
    "GroupSettings": "modes",
    "Inference": "recipe",
    "RoutedEvaluation": "evaluate",
    "RoutedModel": "routed",
    "Router": "routers",
    "RouterError": "routers",
    "RouterSettings": "routers",
    "Runner": "modes",
    "TwinRecipe": "recipe",
    "build_routed": "build",
    "evaluate_routed": "evaluate",
    "export": "store",
    "load_routed": "store",
    "save": "store",
    "train_router": "routers",
    "twin": "build",
}

__all__ = [
    "PRESETS",
    "Compression",
    "Gate",
    "GroupSettings",
    "Inference",
    "RoutedEvaluation",
    "RoutedModel",
    "Router",
    "RouterError",
    "RouterSettings",
    "Runner",
    "TwinRecipe",
    "build_routed",
    "evaluate_routed",
    "export",
    "load_routed",
    "save",
    "train_router",
    "twin",
]

if TYPE_CHECKING:
    from .build import build_routed, twin
    from .compression import Compression
    from .evaluate import RoutedEvaluation, evaluate_routed
    from .gate import Gate
    from .modes import GroupSettings, Runner
    from .presets import PRESETS
    from .recipe import Inference, TwinRecipe
    from .routed import RoutedModel
    from .routers import Router, RouterError, RouterSettings, train_router
    from .store import export, load_routed, save


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mergelab.routing' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
