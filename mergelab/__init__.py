"""MergeLab: put fine-tuned checkpoints together and see what happened.

The names below are loaded when they are first used, so that ``import mergelab`` stays quick and imports neither torch
nor gradio.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

#: public name -> the module that holds it
_PUBLIC = {
    "MergeLabError": "mergelab.errors",
    "Recipe": "mergelab.recipe",
    "evaluate": "mergelab.tasks",
    "evaluate_routed": "mergelab.routing",
    "load": "mergelab.checkpoints",
    "load_routed": "mergelab.routing",
    "load_suite": "mergelab.tasks",
    "merge": "mergelab.api",
    "open_zoo": "mergelab.zoo",
    "preflight": "mergelab.engine",
    "twin": "mergelab.routing",
}

__all__ = [
    "MergeLabError",
    "Recipe",
    "__version__",
    "evaluate",
    "evaluate_routed",
    "load",
    "load_routed",
    "load_suite",
    "merge",
    "open_zoo",
    "preflight",
    "twin",
]

if TYPE_CHECKING:
    from mergelab.api import merge
    from mergelab.checkpoints import load
    from mergelab.engine import preflight  # type: ignore[no-redef]
    from mergelab.errors import MergeLabError
    from mergelab.recipe import Recipe
    from mergelab.routing import evaluate_routed, load_routed, twin
    from mergelab.tasks import evaluate, load_suite  # type: ignore[no-redef]
    from mergelab.zoo import open_zoo


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mergelab' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
