"""Checks of a recipe's values, with messages that name the key; and the mapping that its parameters are kept in."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from ..errors import RecipeError, suggest

Scalar: TypeAlias = bool | int | float | str

DTYPES = ("float32", "float64", "float16", "bfloat16")


class Frozen(Mapping[str, Scalar]):
    """A read-only, hashable mapping of parameter names to values; equal to any mapping with the same items."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Scalar] | Iterable[tuple[str, Scalar]] = ()) -> None:
        self._values = dict(values)

    def __getitem__(self, key: str) -> Scalar:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(frozenset(self._values.items()))

    def __repr__(self) -> str:
        return repr(self._values)


def readable_name(source: str) -> str:
    """The last meaningful part of a source: ``zoo:starter/mnist`` and ``data/mnist.safetensors`` are ``mnist``."""
    text = re.sub(r"^(zoo|hub):", "", source)
    if source.startswith("hub:"):
        text = re.sub(r"@[^/]*", "", text)
    parts = [part for part in re.split(r"[/\\]", text) if part not in ("", ".", "..")]
    name = re.sub(r"\.(safetensors|json|pt|bin)$", "", parts[-1]) if parts else ""
    return name or "model"


def canonical(parameters: Mapping[str, Scalar]) -> dict[str, Scalar]:
    return {key: float(value) if type(value) is int else value for key, value in parameters.items()}


def some_parameters(values: Mapping[str, Any], where: str) -> Frozen:
    if not isinstance(values, Mapping):
        raise RecipeError(f"The parameters of {where} must be a mapping of names to values, not {kind(values)}.")
    out = {}
    for key, value in values.items():
        a_text(key, f"a parameter's name in {where}", required=True)
        if isinstance(value, list | tuple | Mapping):
            raise RecipeError(
                f"Parameter {key!r} of {where} is {kind(value)}: lists (one value per layer) and filters are not yet "
                "supported, give one value; a value per model goes under that model's 'parameters'."
            )
        if not isinstance(value, bool | int | float | str):
            raise RecipeError(f"Parameter {key!r} of {where} must be a number, true or false, or a word.")
        if isinstance(value, int | float) and not finite(value):
            raise RecipeError(f"Parameter {key!r} of {where} must be a finite number, not {shown(value)}.")
        out[key] = value
    return Frozen(out)


def finite(value: float) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def a_dtype(value: Any, key: str) -> str | None:
    if value is None:
        return None
    text = str(value).removeprefix("torch.")
    if text not in DTYPES:
        raise RecipeError(f"{key!r} cannot be {shown(value)}.{suggest(text, DTYPES)}")
    return text


def a_text(value: Any, key: str, *, required: bool) -> None:
    if value is None and not required:
        return
    if not isinstance(value, str) or not value.strip():
        raise RecipeError(f"{key!r} must be a non-empty text, not {shown(value)}.")


def a_mapping(value: Any, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise RecipeError(f"{where} must be a mapping of names to values, not {kind(value)}.")
    return value


def unknown(key: Any, known: Iterable[str], where: str) -> str:
    return f"Unknown key {shown(key)} in {where}.{suggest(str(key), known)}"


def kind(value: Any) -> str:
    if value is None:
        return "nothing"
    names = {str: "a text", bool: "true or false", int: "a number", float: "a number", dict: "a mapping"}
    return names.get(type(value), "a list" if isinstance(value, list | tuple) else f"a {type(value).__name__}")


def shown(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else "a huge number"
    return text if len(text) <= 60 else text[:57] + "..."
