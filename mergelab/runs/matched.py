"""Statistics of a bench's experts, collected once and kept on disk: what Fisher merging, RegMean and MaTS need.

A set of statistics is called ``statistics-`` and twelve digits of a hash of all that determines it: the experts'
weights, the tasks, the kinds, the pictures, the seed. A recipe names it like a folder; here the name stands for the
kept set, and on the command line for the folder that the ``stats`` command of the same settings makes.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Collection
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .. import methods
from ..errors import StatisticsError, TaskError
from ..progress import Progress, Stop
from ..recipe import Recipe
from ..recipe.start import PLAIN
from .room import make_room, place_of, used

if TYPE_CHECKING:
    from ..calibration.cost import Estimate
    from ..statistics import TaskStatistics
    from .bench import Bench

#: Kinds that need gradients, so labels; Grams alone need none.
LABELLED = ("kfac", "diag", "block")
_KINDS = ("gram", *LABELLED)
_NAME = re.compile(r"statistics-[0-9a-f]{12}")
_ENDING = ".safetensors"
#: Where sets are kept, see :mod:`mergelab.runs.room`.
KEPT = "statistics"
#: Pictures that an estimate is timed on.
_TIMED = 8


@dataclass(frozen=True)
class Wish:
    """Which data: at most ``examples`` pictures of every task's ``split``, and how labels are drawn."""

    tasks: tuple[str, ...]
    examples: int = 64
    split: str = "val"
    fisher: str = "empirical"
    seed: int = 0


def kinds_for(recipe: Recipe) -> tuple[str, ...]:
    """The kinds that a recipe's method and the merge it starts from read; () where the recipe needs no statistics."""
    steps = [(recipe.merge_method, dict(recipe.parameters))]
    if recipe.init is not None and recipe.init.merge_method not in (None, *PLAIN):
        steps.append((recipe.init.merge_method, dict(recipe.init.parameters)))
    kinds: set[str] = set()
    for name, parameters in steps:
        method = methods.get(name)
        kinds.update(method.statistics({**method.defaults(), **parameters}))
    return tuple(kind for kind in _KINDS if kind in kinds)


def is_kept_name(text: str | None) -> bool:
    """Whether a recipe's ``statistics`` is the name of a kept set, and no path."""
    return bool(text) and _NAME.fullmatch(str(text)) is not None


def folder_of(text: str | None) -> str | None:
    """Where a recipe's statistics lie: a kept set by its name, else the folder as it was given.

    StatisticsError for the name of a set that this machine does not have.
    """
    if not is_kept_name(text) or Path(str(text)).is_dir():
        return text
    place = place_of(KEPT) / str(text)
    if not place.is_dir():
        raise StatisticsError(
            f"The set {text!r} is not kept on this machine: collect statistics with the same tasks, number of examples "
            "and split, or collect others."
        )
    return str(used(place))


def kept_for(bench: Bench, recipe: Recipe, wish: Wish) -> str | None:
    """The name of a kept set that has what ``recipe`` needs of this data; None where it must be collected."""
    kinds = kinds_for(recipe)
    others = [kind for kind in _KINDS if kind not in kinds]
    for more in range(len(others) + 1):
        for extra in combinations(others, more):
            name = _name(bench, (*kinds, *extra), wish)
            if (place_of(KEPT) / name).is_dir():
                return name
    return None


def statistics_for(
    bench: Bench, recipe: Recipe, wish: Wish, *, progress: Progress | None = None, stop: Stop | None = None
) -> str:
    """The name of the set of statistics that ``recipe`` needs of this data, collected where it is not kept already.

    Raises TaskError without a suite, StatisticsError where the recipe needs none or no task is chosen, Cancelled after
    ``stop``, and then nothing stays.
    """
    from ..calibration import collect_zoo

    suite, kinds = _suite(bench), kinds_for(recipe)
    if not kinds:
        raise StatisticsError(f"The method {recipe.merge_method!r} needs no statistics with these values.")
    _check(bench, wish)
    found = kept_for(bench, recipe, wish)
    if found is not None:
        return found
    name = _name(bench, kinds, wish)
    experts = {task: bench.experts[task] for task in wish.tasks}
    collect_zoo(
        suite, experts, place_of(KEPT) / name, kinds=kinds, tasks=wish.tasks, examples=wish.examples, split=wish.split,
        fisher=wish.fisher, seed=wish.seed, device=bench.device, progress=progress, stop=stop,
    )  # fmt: skip
    make_room(KEPT, _NAME, place_of(KEPT) / name)
    return name


_estimates: dict[tuple[Any, ...], tuple[Estimate, float]] = {}
#: Bytes written a second, with their check: measured on a 2-core server and rounded.
_WRITTEN = 2e8


def estimate_for(
    bench: Bench, recipe: Recipe, wish: Wish, *, kept: Path | Literal["look"] | None = "look"
) -> dict[str, Any]:
    """What collecting would cost: ``{"bytes", "seconds", "timed", "examples": {task: count}, "kept": name or None}``.

    Bytes are exact; seconds are those of a few pictures of one task, timed here once, scaled to all of them. ``kept``:
    the folder that has them already, where they are not found by the wish.
    """
    from ..calibration import estimate_zoo

    suite, kinds = _suite(bench), kinds_for(recipe)
    _check(bench, wish)
    counts = {task: min(wish.examples, len(suite[task].split(wish.split)[1])) for task in wish.tasks}
    if kept == "look":
        name = kept_for(bench, recipe, wish)
        kept = place_of(KEPT) / name if name else None
    if kept is not None:
        size = sum(path.stat().st_size for path in kept.glob(f"*{_ENDING}"))
        return {"bytes": size, "seconds": 0.0, "timed": 0, "examples": counts, "kept": kept.name, "kinds": list(kinds)}
    # Which experts they are decides which tensors have statistics.
    key = (bench.base, *(bench.experts[task] for task in wish.tasks), kinds, wish.fisher)
    if key not in _estimates:
        started = time.perf_counter()
        one = estimate_zoo(
            suite, {task: bench.experts[task] for task in wish.tasks}, kinds=kinds, tasks=wish.tasks[:1],
            examples=_TIMED, batch=_TIMED, split=wish.split, fisher=wish.fisher, seed=wish.seed, device=bench.device,
        )[wish.tasks[0]]  # fmt: skip
        # What each task costs besides its pictures: building its expert (the rest of this estimate), and writing.
        _estimates[key] = one, max(0.0, time.perf_counter() - started - 2 * one.seconds) + one.nbytes / _WRITTEN
    one, besides = _estimates[key]
    seconds = one.seconds / max(1, one.examples) * sum(counts.values()) + besides * len(counts)
    return {
        "bytes": one.nbytes * len(counts), "seconds": seconds, "timed": one.timed, "examples": counts, "kept": None,
        "kinds": list(kinds),
    }  # fmt: skip


def opened(name: str) -> dict[str, TaskStatistics]:
    """The statistics of a set, or of a folder, by task."""
    from ..statistics import read_folder

    return read_folder(str(folder_of(name)))


def about(name: str) -> dict[str, Any]:
    """What a set was made of, as plain data, and in words under ``text``."""
    found = list(opened(name).values())
    first = found[0]
    counts = sorted({one.examples for one in found})
    kinds = [kind for kind in _KINDS if all(kind in one.kinds for one in found)]
    labelled = any(kind in LABELLED for kind in kinds)
    many = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    marks = " (transductive: the split that results are measured on)" if first.split == "test" else ""
    for one in found:
        one.close()
    return {
        "name": name, "tasks": [one.task for one in found], "examples": counts, "split": first.split, "kinds": kinds,
        "fisher": first.fisher, "seed": first.seed, "asked": int(first.meta.get("asked", counts[-1])),
        "transductive": first.split == "test",
        "text": f"{many} {'labelled' if labelled else 'unlabelled'} {first.split} images a task{marks}",
    }  # fmt: skip


def command(name: str, zoo: str | None) -> str:
    """The command that makes the same set in a folder of its name."""
    made = about(name)
    parts = [
        "python -m mergelab stats", f"zoo:{zoo}" if zoo else "SOURCE", f"--kinds {','.join(made['kinds'])}",
        f"--examples {made['asked']}", f"--split {made['split']}",
    ]  # fmt: skip
    if made["fisher"]:
        parts.append(f"--fisher {made['fisher']}")
    return " ".join([*parts, f"--tasks {','.join(made['tasks'])}", f"--seed {made['seed']}", f"--out {name}"])


def _suite(bench: Bench) -> Any:
    if bench.suite is None:
        raise TaskError("These models have no suite, so there are no pictures to collect statistics on; choose one.")
    return bench.suite


def _check(bench: Bench, wish: Wish) -> None:
    if not wish.tasks:
        raise StatisticsError("No task is chosen: tick at least one to collect statistics on.")
    if wish.split not in ("val", "test", "train"):
        raise StatisticsError(f"There is no split {wish.split!r}; choose val, train or test.")
    for task in wish.tasks:
        if task not in bench.experts:
            raise StatisticsError(f"There is no expert of the task {task!r} on the bench; choose others.")


def _name(bench: Bench, kinds: Collection[str], wish: Wish) -> str:
    """A name that changes with anything that changes a number in the set."""
    kinds = {*kinds, "gram"} if "kfac" in kinds else set(kinds)
    gradients = any(kind in LABELLED for kind in kinds)
    suite = _suite(bench)
    essence: list[Any] = [
        "mergelab-statistics/1", suite.name, str(suite.folder), sorted(kinds), wish.examples, wish.split,
        wish.fisher if gradients else "", wish.seed, sorted((task, _hash(bench, task)) for task in wish.tasks),
    ]  # fmt: skip
    return "statistics-" + hashlib.sha256(json.dumps(essence).encode()).hexdigest()[:12]


def _hash(bench: Bench, task: str) -> str:
    return str(bench._checkpoint(bench.experts[task]).weights_hash)
