"""Statistics that a method collects through the layers that it has merged (RegMean++), collected once and kept.

They belong to one merge alone, so they are found by what decides its layers and need no name in the recipe.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..engine import plan_recipe
from ..engine.through import through_hash
from ..progress import Progress, Stop
from ..recipe import Recipe
from .collected import prepare, said
from .room import make_room, place_of, used

if TYPE_CHECKING:
    from .bench import Bench

#: Where they are kept, see :mod:`mergelab.runs.room`.
KEPT = "through"
_NAME = re.compile(r"[0-9a-f]{16}")


def through_folder(bench: Bench, recipe: Recipe) -> Path:
    """Where the statistics of this very merge are, or will be."""
    plan = plan_recipe(_plain(recipe), load=bench.loader(recipe))
    suite = bench.suite
    essence: list[Any] = [
        through_hash(plan),
        *plan.names,
        plan.seed,
        suite.name if suite else "",
        str(getattr(suite, "folder", "")),
    ]
    return place_of(KEPT) / hashlib.sha256(json.dumps(essence).encode()).hexdigest()[:16]


def collect_through(
    bench: Bench, recipe: Recipe, *, progress: Progress | None = None, stop: Stop | None = None
) -> dict[str, Any]:
    """Collect, or find what is kept; what it is of, as plain data. Cancelled after ``stop``, and nothing stays."""
    from ..checkpoints.whole import whole_folder
    from ..statistics import write

    folder = through_folder(bench, recipe)
    if not folder.is_dir():
        plan = prepare(
            _plain(recipe), suite=bench.suite, load=bench.loader(recipe), model=bench.model(), progress=progress,
            stop=stop,
        )  # fmt: skip
        with whole_folder(folder) as partial:
            for name, statistics in zip(plan.names, plan.statistics, strict=True):
                assert statistics is not None
                write(statistics, partial / f"{name}.safetensors", stop=stop)
        make_room(KEPT, _NAME, folder)
    return about_through(bench, recipe)


def about_through(bench: Bench, recipe: Recipe) -> dict[str, Any]:
    """What the kept statistics of a recipe are of; ``text`` in words."""
    plan = plan_recipe(_plain(recipe), load=bench.loader(recipe), statistics=str(used(through_folder(bench, recipe))))
    kinds = sorted({kind for one in plan.statistics if one is not None for kind in one.kinds})
    return {"name": None, "tasks": list(plan.names), "kinds": kinds, "fisher": "", "text": said(plan)}


def _plain(recipe: Recipe) -> Recipe:
    return recipe.replace(out_dtype=None, statistics=None)
