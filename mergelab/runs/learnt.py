"""Learned coefficients (AdaMerging) of a bench's recipes: learned once, kept on disk by the recipe."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import methods
from ..checkpoints.whole import whole_file
from ..errors import MethodError
from ..progress import Progress, Stop
from ..recipe import Recipe
from .room import make_room, place_of, used
from .trained import Learned, fitting, prepare

if TYPE_CHECKING:
    from .bench import Bench

#: Where they are kept, see :mod:`mergelab.runs.room`.
KEPT = "learned"
_NAME = re.compile(r"[0-9a-f]{16}\.json")


def learned_for(bench: Bench, recipe: Recipe, *, progress: Progress | None = None, stop: Stop | None = None) -> Learned:
    """The coefficients of a recipe whose method learns them, from an earlier time or learned now and kept.

    Raises what :func:`~mergelab.runs.trained.prepare` raises; Cancelled after ``stop``, and nothing stays.
    """
    found = kept_learned(bench, recipe)
    if found is None:
        found = prepare(recipe, suite=bench.suite, load=bench._load, model=bench.model(), progress=progress, stop=stop)
        path = _path(bench, recipe)
        with whole_file(path, overwrite=True) as partial:
            partial.write_text(found.to_json(), encoding="utf-8")
        make_room(KEPT, _NAME, path)
    return found


def kept_learned(bench: Bench, recipe: Recipe) -> Learned | None:
    """The coefficients that are kept of this recipe over these very weights, or None."""
    if recipe.learned is not None:
        return prepare(recipe, suite=bench.suite, load=bench._load, model=bench.model())
    path = _path(bench, recipe)
    if not path.is_file():
        return None
    from ..engine import plan_recipe

    try:
        return fitting(Learned.read(used(path)), plan_recipe(recipe.replace(out_dtype=None), load=bench._load))
    except MethodError:  # of an older version, or other weights under the same name
        return None


def learns(recipe: Recipe) -> bool:
    return methods.get(recipe.merge_method).learns


def _path(bench: Bench, recipe: Recipe) -> Path:
    plain = recipe.replace(out_dtype=None, suite=None).hash  # the bench has a suite of its own
    essence: list[Any] = [plain, bench.suite.name if bench.suite else "", str(getattr(bench.suite, "folder", ""))]
    key = hashlib.sha256(json.dumps(essence).encode()).hexdigest()[:16]
    return place_of(KEPT) / f"{key}.json"
