"""Losses in weight space: on the plane of three models, on lines between two; and models projected on paper.

What is measured are the items of a split under every task's own head. Results are plain data, as the figures take them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ...analysis import Plane, grid, line, plane, project
from ...analysis import barriers as barriers_of
from ...analysis.products import State
from ...progress import Progress, Stop, report
from ...training.ground import Ground
from ...training.work import with_tensors
from .iterates import HEADS
from .record import mean
from .watch import Seen, Watch

#: Items a task, and places along an axis or a line, unless told.
LIMIT, STEPS = 40, 9


@dataclass(frozen=True, eq=False)
class Marked:
    """A model with its name on paper. ``series`` and ``role`` (base, experts, merged, kept) say how it is drawn."""

    title: str
    state: State
    series: str
    role: str = "kept"


class Pair(NamedTuple):
    """The ends of a line, and the tasks that are measured on it (None: all)."""

    one: Marked
    two: Marked
    tasks: tuple[str, ...] | None = None


def measured(watch: Watch, state: State, tasks: tuple[str, ...] | None = None, stop: Stop | None = None) -> Seen:
    """:meth:`Watch.measure` of a model that may bring heads of its own among its tensors (see ``iterates.HEADS``)."""
    own = {name[len(HEADS) :]: state[name] for name in state if name.startswith(HEADS)}
    heads = with_tensors(watch.ground.heads, own) if own else None
    return watch.measure(state, heads, tasks=tasks, stop=stop)


# ---- the plane -------------------------------------------------------------------------------------------------------


def landscape(
    ground: Ground, origin: Marked, one: Marked, two: Marked, *, points: Sequence[Marked] = (),
    paths: Mapping[str, Sequence[State]] | None = None, split: str = "held", limit: int | None = LIMIT,
    steps: int = STEPS, margin: float = 0.2, progress: Progress | None = None, stop: Stop | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Mean loss and accuracy over tasks on a grid of the plane through three models.

    Args:
        points: more models to mark; ``paths``: name -> models in order. Both are projected on the plane, and ``off``
            says how far off it they lie: what the grid shows there is the plane's loss, not theirs.
        limit: items a task at most. ``steps``: places along each axis; ``margin``: room around all of it.

    Returns:
        ``xs`` [n], ``ys`` [n] in units of parameter distance; ``loss``, ``accuracy`` [y][x], means over tasks, and
        ``tasks`` -> the same for each; ``points``: rows ``title, series, role, x, y, off, loss, accuracy`` of the three
        and of ``points``, measured as they are; ``paths``: name -> [x, y, off] in order; ``split``, ``items`` by task,
        ``evaluations``.

    Raises CheckpointError where there is no plane, or models do not fit; Cancelled after ``stop``.
    """
    found = plane(origin.state, one.state, two.state, names=(origin.title, one.title, two.title))
    watch = Watch(ground, split, limit)
    anchors = list(zip((origin, one, two), found.anchors, strict=True))
    total = evaluations(steps, len(points))
    far = len(points) + sum(map(len, (paths or {}).values()))
    done = 0

    def told(text: str) -> None:
        nonlocal done
        if stop is not None:
            stop.check()
        report(progress, done, far + total, f"landscape, {text}")
        done += 1

    def place(state: State, title: str) -> tuple[float, float, float]:
        told(f"where {title} lies")
        return found.locate(state, title)

    ways = {name: [place(state, name) for state in states] for name, states in (paths or {}).items()}
    marked = [(model, (*spot, 0.0)) for model, spot in anchors]
    marked += [(model, place(model.state, model.title)) for model in points]
    rows = []
    for model, (x, y, off) in marked:
        told(model.title)
        seen = measured(watch, model.state, stop=stop)
        rows.append({"title": model.title, "series": model.series, "role": model.role, "x": x, "y": y, "off": off,
                     "loss": mean(seen.loss), "accuracy": mean(seen.accuracy)})  # fmt: skip
    spots = [spot for _, spot in marked] + [spot for way in ways.values() for spot in way]
    xs, ys = grid(found, spots, steps, margin)
    cells = [[_cell(watch, found, x, y, told, stop) for x in xs] for y in ys]
    tasks = {name: {"loss": [[cell.loss[name] for cell in row] for row in cells],
                    "accuracy": [[cell.accuracy[name] for cell in row] for row in cells]}
             for name in ground.names}  # fmt: skip
    return {
        "xs": xs, "ys": ys, "loss": [[mean(cell.loss) for cell in row] for row in cells],
        "accuracy": [[mean(cell.accuracy) for cell in row] for row in cells], "tasks": tasks, "points": rows,
        "paths": {name: [list(spot) for spot in way] for name, way in ways.items()}, "split": split,
        "items": watch.items, "evaluations": total,
    }  # fmt: skip


def evaluations(steps: int, points: int = 0) -> int:
    """How many models a landscape measures: its grid, its three anchors and ``points``."""
    return steps * steps + 3 + points


def _cell(watch: Watch, found: Plane, x: float, y: float, told: Any, stop: Stop | None) -> Seen:  # noqa: PLR0917
    told(f"at {x:.3g}, {y:.3g}")
    return measured(watch, found.point(x, y), stop=stop)


# ---- lines -----------------------------------------------------------------------------------------------------------


def barriers(
    ground: Ground, pairs: Sequence[Pair], *, split: str = "held", limit: int | None = LIMIT, steps: int = STEPS,
    progress: Progress | None = None, stop: Stop | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Losses on the straight lines between models, and how far they rise above the chord.

    A row a pair: ``ends``, ``alphas`` [steps] (0: the first model), ``curves`` (task -> losses, and ``mean``),
    ``accuracy`` (the same), ``barriers`` by task and ``barrier``, that of the mean loss
    (:func:`mergelab.analysis.barrier`), ``split``, ``items``. A pair takes ``steps`` evaluations of its tasks.

    Raises CheckpointError where the models do not fit; Cancelled after ``stop``.
    """
    watch, rows = Watch(ground, split, limit), []
    alphas = torch.linspace(0, 1, steps, dtype=torch.float64).tolist()
    for number, (one, two, chosen) in enumerate(pairs):
        tasks, seen = chosen or ground.names, []
        for place, (_, state) in enumerate(line(one.state, two.state, alphas)):
            done = number * steps + place
            report(progress, done, len(pairs) * steps, f"barriers, {one.title} to {two.title}")
            seen.append(measured(watch, state, tasks, stop))
        curves = {task: [one.loss[task] for one in seen] for task in tasks}
        found = barriers_of(alphas, curves)
        shares = {task: [one.accuracy[task] for one in seen] for task in tasks}
        rows.append({
            "ends": [one.title, two.title], "alphas": alphas,
            "curves": {**curves, "mean": [mean(one.loss) for one in seen]},
            "accuracy": {**shares, "mean": [mean(one.accuracy) for one in seen]},
            "barriers": dict(found.tasks), "barrier": found.mean, "split": split,
            "items": {task: watch.items[task] for task in tasks},
        })  # fmt: skip
    return rows


# ---- on paper --------------------------------------------------------------------------------------------------------


def projection(
    models: Sequence[Marked], base: State, paths: Mapping[str, Sequence[str]] | None = None
) -> dict[str, Any]:
    """Models in the two directions in which they differ most (see :func:`mergelab.analysis.project`).

    ``names``, ``coordinates`` [n][2] and ``explained`` [2] as that gives them; ``groups``: name -> series; ``paths``:
    name -> titles of models in order. Measures nothing. Raises CheckpointError where models do not fit.
    """
    found = project({model.title: model.state for model in models}, base)
    return {**found.to_dict(), "groups": {model.title: model.series for model in models},
            "paths": {name: list(titles) for name, titles in (paths or {}).items()}}  # fmt: skip
