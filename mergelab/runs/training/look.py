"""A look at finished training runs: shares of epochs, cosines, the loss between models, models on paper.

Made from the folder of a run or of a comparison; what looks at rounds needs runs that kept them (``keep_rounds``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, TypeVar

from ...errors import Cancelled, CheckpointError, MergeLabError, RecipeError, suggest
from ...progress import Progress, Stop, report
from . import documents
from .compare import COMPARE_FILE, read_compare
from .controls import drift, first_epoch_share, orthogonality
from .iterates import CONTROL, Runs
from .landscape import LIMIT, STEPS, Marked, Pair, barriers, evaluations, landscape, projection
from .marks import ends, experts, kept_rounds, merges, numbers, rounds, title_of
from .record import plain
from .watch import Watch

FORMAT = "mergelab-look/1"
PARTS = ("shares", "orthogonality", "landscape", "barriers", "projection")
SPLITS = ("held", "val", "test")
_T = TypeVar("_T")
#: Told before anything is measured: by part, ``evaluations`` of models and ``pictures`` that they look at.
Told = Callable[[Mapping[str, Mapping[str, int]]], None]


def look(
    folder: str | Path,
    *,
    what: Sequence[str] | None = None,
    split: str = "held",
    limit: int | None = LIMIT,
    steps: int = STEPS,
    device: str = "auto",
    told: Told | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> dict[str, Any]:
    """Look at the runs in ``folder``; the document, as plain data.

    Args:
        what: of ``PARTS``; an error where one cannot be made. None: all that the folder has enough for, and
            ``left_out`` says what is missing for the others.
        split: the items that losses are measured on: ``held`` validation items that nothing was trained on (default),
            ``val``, or ``test``; ``limit``: at most so many a task. Nothing is chosen by them.
        steps: places along each axis of the landscape, and on each line.
        told: called with the number of evaluations before the first of them.

    Returns:
        ``format``, ``title``, ``tasks``, ``titles``, ``runs`` (name -> kind, title, rounds, epochs), ``split``,
        ``items``, ``cost``, ``left_out``, ``seconds``, and the parts: ``shares``
        (:func:`~.controls.first_epoch_share`), ``orthogonality`` (``rows`` of :func:`~.controls.orthogonality` and
        ``drift`` by run), ``landscape``, ``barriers``, ``projection`` (:mod:`.landscape`).

    Raises CheckpointError for a folder that holds no run or has not kept what is asked for, RecipeError for an unknown
    part or split, Cancelled after ``stop``.
    """
    started = time.perf_counter()
    _check(what, split, steps)
    looking = _Looking(Runs(folder, device), split, limit, steps, stop)
    left_out: dict[str, str] = {}
    parts = {name: part for name in what or PARTS
             if (part := _tried(name, partial(looking.part, name), what, left_out)) is not None}  # fmt: skip
    cost = {name: {"evaluations": part.evaluations, "pictures": part.pictures} for name, part in parts.items()
            if part.evaluations}  # fmt: skip
    if told is not None:
        told(cost)
    found: dict[str, Any] = {}
    for at, (name, part) in enumerate(parts.items()):
        if stop is not None:
            stop.check()
        made = _tried(name, partial(part.make, _share(progress, at, len(parts))), what, left_out)
        found |= {} if made is None else {name: made}
    report(progress, 1, 1, "looked")
    return plain({
        "format": FORMAT, **looking.about(), "cost": cost, "left_out": {**left_out, **looking.left_out},
        "seconds": time.perf_counter() - started, **found,
    })  # fmt: skip


def _check(what: Sequence[str] | None, split: str, steps: int) -> None:
    for name in what or ():
        if name not in PARTS:
            raise RecipeError(f"There is nothing called {name!r} to look at.{suggest(name, PARTS)}")
    if split not in SPLITS:
        raise RecipeError(f"Losses cannot be measured on {split!r}.{suggest(split, SPLITS)}")
    if steps < 2:
        raise RecipeError(f"A line and a grid need at least 2 steps, not {steps}.")


def _tried(name: str, make: Callable[[], _T], what: Sequence[str] | None, left_out: dict[str, str]) -> _T | None:
    """What ``make`` gives; where nobody asked for this very part, an error only leaves it out."""
    try:
        return make()
    except Cancelled:
        raise
    except MergeLabError as error:
        if what is not None:
            raise
        left_out[name] = str(error)
        return None


def checkpoints(runs: Runs, rows: Sequence[Mapping[str, Any]] = (), stop: Stop | None = None) -> dict[str, Any]:
    """The start, every run's rounds, the experts as they ended and their one-shot merges, projected together.

    ``rows``: merges of a comparison (``read_compare(…)["merges"]``) that are made again from those experts: the mean,
    and each method with its chosen coefficient. They are held in memory; all else is read a tensor at a time. Raises
    CheckpointError where rounds were not kept.
    """
    models = [*rounds(runs), *experts(runs)]
    models += merges(runs, rows, stop)
    paths = {title_of(name): [models[0].title, *(f"{title_of(name)} {k}" for k in numbers(runs, name))]
             for name in runs.wholes}  # fmt: skip
    return projection(models, models[0].state, paths)


@dataclass(frozen=True)
class _Part:
    """A part that can be made: what it measures, and how it is made."""

    make: Callable[[Progress], Any]
    evaluations: int = 0
    pictures: int = 0


class _Looking:
    """One look: every part is made ready first, so that what is missing is known before anything is measured."""

    def __init__(self, runs: Runs, split: str, limit: int | None, steps: int, stop: Stop | None) -> None:
        self.runs, self.split, self.limit, self.steps, self.stop = runs, split, limit, steps, stop
        self.left_out: dict[str, str] = {}
        self.merges: list[dict[str, Any]] = []
        self.title = ""
        if (runs.folder / COMPARE_FILE).is_file():
            document = read_compare(runs.folder)
            self.merges, self.title = document["merges"], document["title"]

    def part(self, name: str) -> _Part:
        made: _Part = getattr(self, f"_{name}")()
        return made

    def about(self) -> dict[str, Any]:
        """What was looked at."""
        records = self.runs.records
        first = next(iter(records.values()))
        control = {} if self.runs.control is None else {CONTROL: self.runs.control}
        return {
            "title": self.title or first.recipe.title or "", "tasks": list(first.tasks), "titles": dict(first.titles),
            "runs": {name: {"kind": record.kind, "title": title_of(name), "rounds": len(record.rounds),
                            "epochs": record.points[-1]["epochs"] if record.points else 0}
                     for name, record in (records | control).items()},
            "split": self.split, "items": self.watch.items if "watch" in vars(self) else {},
        }  # fmt: skip

    @cached_property
    def watch(self) -> Watch:
        """The items, to count them beforehand."""
        if self.split == "val" and self.runs.ground.recipe.split == "val":
            raise RecipeError("The validation items were trained on, so look at the held ones (--split held) or test.")
        return Watch(self.runs.ground, self.split, self.limit)

    # ---- from the records --------------------------------------------------------------------------------------------

    def _shares(self) -> _Part:
        name = self.runs.apart
        if name is None:
            raise CheckpointError(
                f"No experts were trained apart in {self.runs.folder.name}; run it with --beside one_shot."
            )
        shares = first_epoch_share(self.runs.records[name].to_dict())
        return _Part(lambda _: shares)

    def _orthogonality(self) -> _Part:
        records = dict(self.runs.records)
        if self.runs.control is not None:
            records[CONTROL] = self.runs.control
        else:
            self.left_out["control"] = "Experts of this joint model were not trained; look with --control to have them."
        rows = orthogonality({name: record.to_dict() for name, record in records.items()})
        ways = {}
        for name in self.runs.wholes:
            if self.runs.records[name].kind == "atm":
                try:
                    ways[name] = kept_rounds(self.runs, name)
                except CheckpointError as error:
                    self.left_out["drift"] = str(error)
        if not rows:
            raise CheckpointError(f"No run in {self.runs.folder.name} has task vectors; look at ATM's or at experts.")

        def make(progress: Progress) -> dict[str, Any]:
            found = {}
            for at, (name, way) in enumerate(ways.items()):
                report(progress, at, len(ways), f"drift of {len(way[0])} models of {name}")
                found[name] = drift(*way)
            return {"rows": rows, "drift": found}

        return _Part(make)

    # ---- measured ----------------------------------------------------------------------------------------------------

    def _landscape(self) -> _Part:
        runs = self.runs
        origin, one, two, *_ = self._three()
        paths = {title_of(name): [runs.after(name, k, heads=True) for k in (0, *numbers(runs, name))]
                 for name in runs.wholes}  # fmt: skip
        count = evaluations(self.steps)
        return _Part(
            lambda progress: landscape(
                runs.ground, origin, one, two, paths=paths, split=self.split, limit=self.limit, steps=self.steps,
                progress=progress, stop=self.stop,
            ),
            count, count * sum(self.watch.items.values()),
        )  # fmt: skip

    def _barriers(self) -> _Part:
        pairs = [Pair(one, two) for one, two in combinations(ends(self.runs), 2)]
        tasks, apart = self.runs.ground.names, experts(self.runs, heads=True)
        if apart:  # neighbours, each pair on its own two tasks
            pairs += [Pair(*both, names) for both, names in zip(pairwise(apart), pairwise(tasks), strict=True)]
        if not pairs:
            raise CheckpointError(f"{self.runs.folder.name} has only one model, so there is no line to look at.")
        items = self.watch.items
        pictures = self.steps * sum(items[task] for pair in pairs for task in pair.tasks or tasks)
        return _Part(
            lambda progress: barriers(
                self.runs.ground, pairs, split=self.split, limit=self.limit, steps=self.steps, progress=progress,
                stop=self.stop,
            ),
            len(pairs) * self.steps, pictures,
        )  # fmt: skip

    def _projection(self) -> _Part:
        _ = [*rounds(self.runs), *experts(self.runs)]  # opened, so that what is missing is known

        def make(progress: Progress) -> dict[str, Any]:
            report(progress, 0, 1, "projecting models")
            return checkpoints(self.runs, self.merges, self.stop)

        return _Part(make)

    def _three(self) -> list[Marked]:
        """The plane's models: the start and where runs ended; else experts, or a run's middle round."""
        runs = self.runs
        found = [*ends(runs), *experts(runs, heads=True)]
        if len(found) < 3 and runs.wholes:
            name = runs.wholes[0]
            middle = (runs.rounds(name) + 1) // 2
            if middle < runs.rounds(name):
                title = title_of(name)
                found.append(Marked(f"{title} {middle}", runs.after(name, middle, heads=True), title))
        if len(found) < 3:
            raise CheckpointError(
                f"{runs.folder.name} has {len(found)} models of the three that a plane needs; compare with joint "
                "training (--beside joint)."
            )
        return found[:3]


def _share(progress: Progress | None, at: int, of: int) -> Progress:
    return lambda done, total, text: report(progress, at * total + done, of * total, text)


# ---- files -----------------------------------------------------------------------------------------------------------


def write_look(document: Mapping[str, Any], path: str | Path, *, overwrite: bool = False) -> Path:
    """Into one file, whole or not at all."""
    return documents.write(document, path, overwrite=overwrite)


def read_look(path: str | Path) -> dict[str, Any]:
    """The document of a file that :func:`write_look` wrote; CheckpointError for anything else."""
    return documents.read(path, FORMAT, "look again")
