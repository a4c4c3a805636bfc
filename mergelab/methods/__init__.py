"""The shelf of merging methods. A file here that holds a `Method` is found by itself: adding a method is one file."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from typing import Any

from ..errors import MethodError
from .declaration import Method, Parameter, Promises, closest

__all__ = ["Method", "MethodError", "Parameter", "Promises", "get", "registry"]


@functools.cache
def _shelf() -> dict[str, Method]:
    found: dict[str, Method] = {}
    for module in pkgutil.iter_modules(__path__):
        for value in vars(importlib.import_module(f"{__name__}.{module.name}")).values():
            if isinstance(value, Method) and found.setdefault(value.name, value) is not value:
                raise RuntimeError(f"two methods are called {value.name!r}")
    return dict(sorted(found.items()))


def registry() -> dict[str, Method]:
    """Every declared method by name, sorted."""
    return dict(_shelf())


def get(name: Any) -> Method:
    """The method of this name; MethodError with a suggestion if there is none."""
    if isinstance(name, Method):
        return name
    try:
        return _shelf()[name]
    except (KeyError, TypeError):
        raise MethodError(f"There is no method {name!r}.{closest(str(name), list(_shelf()))}") from None
