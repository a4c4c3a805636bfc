"""What a merge starts from: the recipe's ``init``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import RecipeError
from .checks import Frozen, Scalar, a_mapping, a_text, canonical, kind, some_parameters, unknown

_KEYS = ("merge_method", "parameters", "model")
#: Starts that are no method.
PLAIN = ("base", "average")


@dataclass(frozen=True)
class Init:
    """The merge of the same models that a method starts from: another method with its parameters, ``base`` (the base
    itself), ``average`` (the mean), or a ``model`` (a merged checkpoint's source)."""

    merge_method: str | None = None
    parameters: Mapping[str, Scalar] = field(default_factory=Frozen)
    model: str | None = None

    def __post_init__(self) -> None:
        a_text(self.merge_method, "init.merge_method", required=False)
        a_text(self.model, "init.model", required=False)
        if (self.merge_method is None) == (self.model is None):
            raise RecipeError("'init' must have either 'merge_method' (another merge of these models) or 'model'.")
        object.__setattr__(self, "parameters", some_parameters(self.parameters, "'init'"))
        if self.parameters and (self.model is not None or self.merge_method in PLAIN):
            raise RecipeError(f"'init' {self.model or self.merge_method!r} has no parameters; leave them out.")

    @classmethod
    def of(cls, value: Any) -> Init | None:
        """An init from a method's name, ``base``, ``average``, or a mapping; an unknown key is an error."""
        if value is None or isinstance(value, Init):
            return value
        if isinstance(value, str):
            return cls(value)
        if not isinstance(value, Mapping):
            raise RecipeError(
                "'init' must be a method's name, 'base', 'average' or a mapping with 'merge_method', not "
                f"{kind(value)}."
            )
        for key in value:
            if key not in _KEYS:
                raise RecipeError(unknown(key, _KEYS, "'init'"))
        parameters = a_mapping(value.get("parameters"), "init.parameters")
        return cls(value.get("merge_method"), parameters, value.get("model"))

    def to_plain(self) -> Any:
        """The init as plain data: a word where that says everything."""
        if self.model is not None:
            return {"model": self.model}
        if not self.parameters:
            return self.merge_method
        return {"merge_method": self.merge_method, "parameters": dict(self.parameters)}

    @property
    def essence(self) -> list[Any]:
        """What of it goes into a recipe's hash."""
        return [self.merge_method, self.model, canonical(self.parameters)]
