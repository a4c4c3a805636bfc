"""The routed recipe: everything that determines a routed model, in one object, and its forms.

It is an ordinary recipe, which makes the shared model, with four sections more::

    preset: default          # paper | authors_code | rank1 | default: what the other sections do not say
    exclusive: {rank_ratio: 0.1}
    router: {kind: mlp, epochs: 10, temperature: 1.0}
    inference: {mode: auto, head: router_argmax}
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from ..errors import MergeLabError, RecipeError, suggest
from ..recipe import ModelEntry, Recipe
from ..recipe import text as forms
from ..recipe.checks import canonical, shown, unknown
from ..recipe.checks import kind as kind_of
from .compression import Compression
from .gate import Gate
from .presets import CLUSTER_ON, DEFAULT, HEADS, MODES, PRESETS
from .routers import RouterSettings

SECTIONS = ("preset", "exclusive", "router", "inference")
_SIZES = ("rank", "rank_ratio", "energy", "density")
_GATE = tuple(f.name for f in fields(Gate))
_T = TypeVar("_T")


@dataclass(frozen=True)
class Inference:
    """How a routed model is run unless a call says otherwise. None of it changes what is stored, but for
    ``early_layer``: the block before which the router of the mode one_pass reads (None: a quarter of the blocks in;
    0: no such router)."""

    mode: str = "auto"
    head: str = "router_argmax"
    groups_per_bin: int = 20
    total_groups: int | None = None
    cluster_on: str = "weights"
    early_layer: int | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("mode", MODES), ("head", HEADS), ("cluster_on", CLUSTER_ON)):
            value = getattr(self, name)
            if not isinstance(value, str) or value not in allowed:
                raise RecipeError(f"{name!r} cannot be {shown(value)}.{suggest(str(value), allowed)}")
        for name, least, optional in (("groups_per_bin", 1, False), ("total_groups", 1, True),
                                      ("early_layer", 0, True)):  # fmt: skip
            value = getattr(self, name)
            if value is None and optional:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
                raise RecipeError(f"{name!r} must be a whole number from {least}, not {shown(value)}.")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class TwinRecipe:
    """Everything that determines a routed model. Frozen; any instance is well-formed.

    ``shared`` makes the shared model and names the experts, ``exclusive`` says what is kept of each, ``router`` and
    ``gate`` how weights are found. ``preset`` is where values that were not given came from; the values themselves are
    here. Raises RecipeError naming the section and key when something is malformed.
    """

    shared: Recipe
    exclusive: Compression
    router: RouterSettings = field(default_factory=RouterSettings)
    gate: Gate = field(default_factory=Gate)
    inference: Inference = field(default_factory=Inference)
    preset: str = DEFAULT

    def __post_init__(self) -> None:
        _ = self.experts

    # ---- forms -------------------------------------------------------------------------------------------------------

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TwinRecipe:
        """The recipe that plain data describes. What a section leaves out is the preset's; seeds are the recipe's."""
        if not isinstance(data, Mapping):
            raise RecipeError(f"A routed recipe is a mapping that starts with 'merge_method', not {kind_of(data)}.")
        own = {key: data[key] for key in SECTIONS if data.get(key) is not None}
        shared = _shared({key: value for key, value in data.items() if key not in SECTIONS})
        name = own.get("preset", DEFAULT)
        if not isinstance(name, str) or name not in PRESETS:
            raise RecipeError(f"There is no preset {shown(name)}.{suggest(str(name), PRESETS)}")
        preset = PRESETS[name]
        given = {key: _section(own.get(key, {}), key) for key in SECTIONS[1:]}
        seeds = {"seed": shared.seed % 2**31}
        router = {**preset.router, **seeds, **given["router"]}
        return cls(
            shared,
            _exclusive({**preset.exclusive, **seeds}, given["exclusive"]),
            _make(RouterSettings, {k: v for k, v in router.items() if k not in _GATE}, "router", _GATE),
            _make(Gate, {k: v for k, v in router.items() if k in _GATE}, "router"),
            _make(Inference, {**preset.inference, **given["inference"]}, "inference"),
            name,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data with every value of the sections written out; :meth:`from_dict` reads the same recipe back."""
        sizes = {k: v for k, v in asdict(self.exclusive).items() if v is not None}
        return {
            **self.shared.to_dict(),
            "preset": self.preset,
            "exclusive": sizes,
            "router": {**self.router.to_dict(), **self.gate.to_dict()},
            "inference": self.inference.to_dict(),
        }

    @classmethod
    def from_yaml(cls, text: str | bytes) -> TwinRecipe:
        """The recipe in a YAML text of at most 64 KB (no aliases, no tags, no repeated keys)."""
        return cls.from_dict(forms.read(text))

    def to_yaml(self) -> str:
        return forms.write(self.to_dict())

    @classmethod
    def from_json(cls, text: str | bytes) -> TwinRecipe:
        """The recipe in a JSON text of at most 64 KB."""
        return cls.from_dict(forms.read_json(text))

    @classmethod
    def read(
        cls,
        path: str | Path,
        *,
        preset: str | None = None,
        seed: int | None = None,
        exclusive: Mapping[str, Any] | None = None,
    ) -> TwinRecipe:
        """The recipe in a file (YAML, or JSON by its suffix); a message about its content starts with its name.

        ``preset``, ``seed`` and words of ``exclusive`` are put in the place of the file's.
        """
        path = Path(path)
        try:
            with path.open("rb") as file:
                raw = file.read(forms.MAX_BYTES + 1)
        except OSError as error:
            raise RecipeError(f"The recipe {path} cannot be read: {error.strerror or error}.") from None
        try:
            data = forms.read_json(raw) if path.suffix.lower() == ".json" else forms.read(raw)
            if isinstance(data, dict):
                changes = {"preset": preset, "seed": seed}
                data |= {key: value for key, value in changes.items() if value is not None}
                if exclusive:
                    data["exclusive"] = _resized(_section(data.get("exclusive") or {}, "exclusive"), exclusive)
            return cls.from_dict(data)
        except RecipeError as error:
            raise RecipeError(f"{path.name}: {error}") from None

    # ---- views -------------------------------------------------------------------------------------------------------

    def replace(self, **changes: Any) -> TwinRecipe:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def with_sections(self, **sections: Mapping[str, Any]) -> TwinRecipe:
        """A copy with some words of ``exclusive``, ``router`` or ``inference`` changed, checked as at reading."""
        data = self.to_dict()
        for name, words in sections.items():
            data[name] = _resized(data[name], words) if name == "exclusive" else {**data[name], **words}
        return TwinRecipe.from_dict(data)

    @property
    def experts(self) -> dict[str, ModelEntry]:
        """Display name -> entry of the models that are taken apart: all but the base."""
        named = dict(zip(self.shared.names, self.shared.models, strict=True))
        kept = {n: e for n, e in named.items() if self.shared.base_model is None or e.model != self.shared.base_model}
        if not kept:
            raise RecipeError(
                "The only model in the recipe is the base itself; list at least one expert to take apart."
            )
        return kept

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of what determines the routed model: the shared recipe, the experts' names, which are the
        tasks, what is kept of them, the router and its early layer. How it is run is not in it, nor the preset."""
        essence = {
            "shared": self.shared.hash,
            "tasks": list(self.experts),
            "exclusive": canonical(asdict(self.exclusive)),
            "router": canonical(self.router.to_dict()),  # type: ignore[arg-type]
            "gate": canonical(self.gate.to_dict()),  # type: ignore[arg-type]
            "early_layer": self.inference.early_layer,
        }
        return hashlib.sha256(json.dumps(essence, sort_keys=True).encode()).hexdigest()


def _shared(data: Mapping[str, Any]) -> Recipe:
    try:
        return Recipe.from_dict(data)
    except RecipeError as error:
        close = [s for key in data for s in SECTIONS if f"Unknown key {shown(key)}" in str(error) and _near(key, s)]
        if close:
            raise RecipeError(f"{str(error).partition(' Did you')[0].partition(' Known')[0]} "
                              f"Did you mean {close[0]!r}?") from None  # fmt: skip
        raise


def _near(key: Any, section: str) -> bool:
    return "Did you mean" in suggest(str(key), [section])


def _section(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise RecipeError(f"{name!r} must be a mapping of names to values, not {kind_of(value)}.")
    return dict(value)


def _exclusive(preset: Mapping[str, Any], given: Mapping[str, Any]) -> Compression:
    """A size that is given, or a kind that takes another, puts the preset's size out of force."""
    words = {key: value for key, value in given.items() if value is not None}
    sized = any(key in words for key in _SIZES) or words.get("kind", "svd") != "svd"
    kept = {key: value for key, value in preset.items() if not (sized and key in _SIZES)}
    return _make(Compression, {**kept, **words}, "exclusive")


def _resized(kept: Mapping[str, Any], words: Mapping[str, Any]) -> dict[str, Any]:
    """``kept`` with ``words``, whose size or kind puts the size and the kind that were there out of force."""
    if any(words.get(key) is not None for key in (*_SIZES, "kind")):
        kept = {key: value for key, value in kept.items() if key not in (*_SIZES, "kind")}
    return {**kept, **words}


def _make(cls: type[_T], words: Mapping[str, Any], where: str, also: tuple[str, ...] = ()) -> _T:
    """An object of a section's words; anything wrong is a RecipeError that names the section."""
    known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    for key in words:
        if key not in known:
            raise RecipeError(unknown(key, (*known, *also), repr(where)))
    try:
        return cls(**words)
    except (MergeLabError, TypeError, ValueError, OverflowError) as error:
        raise RecipeError(f"{where}: {error}") from None
