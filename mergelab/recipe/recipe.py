"""The recipe: everything that determines a merge, in one object.

The form on the page, YAML, JSON, the command line, the model card and the history are all views of a :class:`Recipe`.
The YAML keys are mergekit's (``merge_method``, ``base_model``, ``models``, ``parameters``, ``dtype``, ``out_dtype``),
plus ``seed``, ``suite`` and ``title``, and for methods that need them ``init`` (the merge to start from),
``statistics`` (a folder) and ``learned`` (a file of coefficients); ``space: adapter`` merges adapters' own vectors.
Nothing here reads a checkpoint or knows a method (but for :data:`FROM_SUITE`): that a method exists and that its
parameters are in range is checked by :mod:`mergelab.methods`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import RecipeError, suggest
from . import text as forms
from .checks import (
    Frozen,
    Scalar,
    a_dtype,
    a_mapping,
    a_text,
    canonical,
    kind,
    readable_name,
    shown,
    some_parameters,
    unknown,
)
from .start import Init

_KEYS = (
    "merge_method", "base_model", "space", "models", "parameters", "init", "statistics", "learned", "dtype",
    "out_dtype", "seed", "suite", "title",
)  # fmt: skip
#: What is merged: full weights (the default), or the adapters' own vectors.
SPACES = ("weights", "adapter")
#: Methods that look at the suite's pictures of each model's task -> the key that stands for what they find there. Only
#: the hash asks; a test holds these to be the methods that learn or collect.
FROM_SUITE = {"adamerging": "learned", "regmean_pp": "statistics"}
_NOT_YET = ("slices", "modules", "tokenizer", "tokenizer_source", "chat_template")
_ENTRY_KEYS = ("model", "name", "parameters")


@dataclass(frozen=True)
class ModelEntry:
    """One model of a recipe: its source, its display name (``None``: made from the source), its own parameters."""

    model: str
    name: str | None = None
    parameters: Mapping[str, Scalar] = field(default_factory=Frozen)

    def __post_init__(self) -> None:
        where = f"model {self.model!r}"
        a_text(self.model, "models[].model", required=True)
        if self.name is not None:
            a_text(self.name, f"name of {where}", required=True)
        object.__setattr__(self, "parameters", some_parameters(self.parameters, where))

    @classmethod
    def of(cls, value: Any, position: int) -> ModelEntry:
        """An entry from a source string, a mapping with ``model``/``name``/``parameters``, or an entry."""
        if isinstance(value, ModelEntry):
            return value
        if isinstance(value, str):
            return cls(value)
        where = f"models[{position}]"
        if not isinstance(value, Mapping):
            raise RecipeError(f"{where} must be a source or a mapping with the key 'model', not {kind(value)}.")
        for key in value:
            if key not in _ENTRY_KEYS:
                raise RecipeError(unknown(key, _ENTRY_KEYS, where) + " A model's coefficients go under 'parameters'.")
        if "model" not in value:
            raise RecipeError(f"{where} has no 'model': say which checkpoint it is, such as zoo:starter/mnist.")
        if isinstance(value["model"], Mapping):
            raise RecipeError(f"{where}.model as a mapping is not yet supported; write the source as one string.")
        return cls(value["model"], value.get("name"), a_mapping(value.get("parameters"), f"{where}.parameters"))

    def to_dict(self) -> dict[str, Any]:
        """The entry as plain data, without what is not set."""
        out: dict[str, Any] = {"model": self.model}
        if self.name is not None:
            out["name"] = self.name
        if self.parameters:
            out["parameters"] = dict(self.parameters)
        return out


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a merge. Frozen and hashable; any instance is well-formed.

    ``dtype`` is what the merge computes in (``float32`` unless ``float64``; the half types mean float32 with the result
    in that type) and ``out_dtype`` what the result is stored in (default: ``dtype`` if given, else the type each tensor
    has). ``init`` may be given as :meth:`Init.of` takes it; ``statistics`` is a folder of them, ``learned`` a file of
    learned coefficients; ``space`` None stands for ``weights``. Raises :class:`~mergelab.errors.RecipeError` naming
    the key when something is malformed.
    """

    merge_method: str
    models: tuple[ModelEntry, ...]
    base_model: str | None = None
    parameters: Mapping[str, Scalar] = field(default_factory=Frozen)
    dtype: str | None = None
    out_dtype: str | None = None
    seed: int = 0
    suite: str | None = None
    title: str | None = None
    init: Init | None = None
    statistics: str | None = None
    learned: str | None = None
    space: str | None = None

    def __post_init__(self) -> None:
        a_text(self.merge_method, "merge_method", required=True)
        if self.space not in (None, *SPACES):
            raise RecipeError(f"'space' cannot be {shown(self.space)}.{suggest(str(self.space), SPACES)}")
        object.__setattr__(self, "space", None if self.space == SPACES[0] else self.space)
        for key in ("base_model", "suite", "title", "statistics", "learned"):
            a_text(getattr(self, key), key, required=False)
        if isinstance(self.models, str | Mapping) or not isinstance(self.models, Iterable):
            raise RecipeError(f"'models' must be a list of models, not {kind(self.models)}.")
        entries = tuple(ModelEntry.of(value, position) for position, value in enumerate(self.models))
        if not entries:
            raise RecipeError("'models' is empty: list at least one model to merge, such as zoo:starter/mnist.")
        object.__setattr__(self, "models", entries)
        object.__setattr__(self, "parameters", some_parameters(self.parameters, "'parameters'"))
        object.__setattr__(self, "init", Init.of(self.init))
        object.__setattr__(self, "dtype", a_dtype(self.dtype, "dtype"))
        object.__setattr__(self, "out_dtype", a_dtype(self.out_dtype, "out_dtype"))
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise RecipeError(f"'seed' must be a whole number from 0 to 2^63 - 1, not {shown(self.seed)}.")
        _ = self.names

    # ---- forms -------------------------------------------------------------------------------------------------------

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """The recipe that plain data describes; an unknown key is an error with a suggestion."""
        if not isinstance(data, Mapping):
            raise RecipeError(f"A recipe is a mapping that starts with 'merge_method', not {kind(data)}.")
        for key in data:
            if key in _NOT_YET:
                raise RecipeError(f"The mergekit key {key!r} is not yet supported; use whole 'models' without it.")
            if key not in _KEYS:
                raise RecipeError(unknown(key, _KEYS, "the recipe"))
        for key in ("merge_method", "models"):
            if data.get(key) is None:
                raise RecipeError(f"The recipe has no {key!r}.")
        values = {key: value for key, value in data.items() if value is not None}
        values["parameters"] = a_mapping(values.get("parameters"), "'parameters'")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain data in a fixed, readable order, without what is not set."""
        out: dict[str, Any] = {"merge_method": self.merge_method}
        if self.base_model is not None:
            out["base_model"] = self.base_model
        if self.space is not None:
            out["space"] = self.space
        out["models"] = [entry.to_dict() for entry in self.models]
        if self.parameters:
            out["parameters"] = dict(self.parameters)
        if self.init is not None:
            out["init"] = self.init.to_plain()
        for key in ("statistics", "learned", "dtype", "out_dtype", "seed", "suite", "title"):
            if getattr(self, key) is not None:
                out[key] = getattr(self, key)
        return out

    @classmethod
    def from_yaml(cls, text: str | bytes) -> Recipe:
        """The recipe in a YAML text of at most 64 KB (no aliases, no tags, no repeated keys)."""
        return cls.from_dict(forms.read(text))

    def to_yaml(self) -> str:
        """The recipe as YAML that mergekit's users can read."""
        return forms.write(self.to_dict())

    @classmethod
    def from_json(cls, text: str | bytes) -> Recipe:
        """The recipe in a JSON text of at most 64 KB."""
        return cls.from_dict(forms.read_json(text))

    def to_json(self) -> str:
        """The recipe as indented JSON."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    @classmethod
    def read(cls, path: str | Path) -> Recipe:
        """The recipe in a file; a message about its content starts with the file's name."""
        path = Path(path)
        try:
            with path.open("rb") as file:
                data = file.read(forms.MAX_BYTES + 1)
        except OSError as error:
            raise RecipeError(f"The recipe {path} cannot be read: {error.strerror or error}.") from None
        try:
            return cls.from_json(data) if path.suffix.lower() == ".json" else cls.from_yaml(data)
        except RecipeError as error:
            raise RecipeError(f"{path.name}: {error}") from None

    # ---- views -------------------------------------------------------------------------------------------------------

    def replace(self, **changes: Any) -> Recipe:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    @property
    def names(self) -> tuple[str, ...]:
        """One unique, readable name per model: the given one, or from its source (``mnist``, ``mnist-2``)."""
        given = [entry.name for entry in self.models if entry.name is not None]
        for name in given:
            if given.count(name) > 1:
                raise RecipeError(f"Two models have the name {name!r}; give each its own.")
        taken = set(given)
        names = []
        for entry in self.models:
            stem = name = entry.name or readable_name(entry.model)
            count = 1
            while entry.name is None and name in taken:
                count += 1
                name = f"{stem}-{count}"
            taken.add(name)
            names.append(name)
        return tuple(names)

    @property
    def _looks(self) -> bool:
        """Whether the merged weights depend on the suite, and were not found from it before."""
        given = FROM_SUITE.get(self.merge_method)
        return given is not None and getattr(self, given) is None

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of what determines the merged weights.

        The order of keys, the title and the models' display names do not matter; 1 and 1.0 are the same value.
        ``init``, ``statistics``, ``learned`` and ``space`` are in it only where they are set. A method that looks at
        the suite's pictures itself (:data:`FROM_SUITE`) has the suite in it and the models' names, which are its tasks.
        """
        essence: dict[str, Any] = {
            "merge_method": self.merge_method,
            "base_model": self.base_model,
            "models": [[entry.model, canonical(entry.parameters)] for entry in self.models],
            "parameters": canonical(self.parameters),
            "dtype": self.dtype,
            "out_dtype": self.out_dtype,
            "seed": self.seed,
        }
        later = {"init": self.init and self.init.essence, "statistics": self.statistics, "learned": self.learned,
                 "space": self.space, "looks_at": [self.suite, *self.names] if self._looks else None}  # fmt: skip
        essence |= {key: value for key, value in later.items() if value is not None}
        return hashlib.sha256(json.dumps(essence, sort_keys=True).encode()).hexdigest()
