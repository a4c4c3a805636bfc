"""Selection on validation: a merge at every point of a grid, measured on data that is neither train nor test.

The iterations of a solver come from one pass with snapshots and always have 0 among them, so that what is chosen is
never below the init on the validation data. Test data is refused, unless an oracle is asked for by that name.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import methods
from ..engine.adapters import as_weights
from ..engine.plan import experts as recipe_experts
from ..engine.snapshots import merge_snapshots
from ..errors import CheckpointError, RecipeError, TaskError
from ..methods import Method
from ..progress import Progress, Stop, report
from ..recipe import Recipe
from ..recipe.start import PLAIN
from ..tasks import load_suite
from .bench import Bench
from .chosen import Chosen, GridPoint, pick, reason, values_text
from .judges import Judge, Measure, OnBench, State

if TYPE_CHECKING:
    from ..statistics import TaskStatistics

_ITERATIONS = "iterations"
_INIT = "init."


def choose(
    place: Bench | Measure,
    recipe: Recipe,
    grid: Mapping[str, Sequence[Any]],
    *,
    split: str = "val",
    limit: int | None = None,
    tasks: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    statistics: str | Path | Mapping[str, TaskStatistics] | None = None,
    oracle: bool = False,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Chosen:
    """The values of ``grid`` (parameter name -> values to try) under which ``recipe`` is best on validation.

    ``place`` is a bench, whose suite measures, or a function ``measure(state) -> {task: accuracy}`` of the caller's.
    The mean over tasks decides; equal means: the first in the grid's order, so give the smaller change first.
    ``init.NAME`` names a parameter of the merge that the method starts from.

    Args:
        split: which split of the suite; ``test`` is refused unless ``oracle``, which marks the result.
        limit: at most so many items a task, the same ones at every point.
        tasks: the tasks to measure (a bench only); by default those of the suite that the recipe has an expert for,
            else all that have one, else all.
        seeds: seeds of the merge, for methods with randomness; accuracies are means over them.
        statistics: those of the tasks, a folder or a mapping, instead of the recipe's.

    A point whose weights give no finite features counts as not measured. Raises TaskError, RecipeError or MethodError
    for what cannot be chosen from: an unknown parameter, a value out of range, an empty grid, test data.
    """
    started = time.perf_counter()
    if split == "test" and not oracle:
        raise TaskError(
            "Nothing is chosen on test data: take the split 'val', or ask for an oracle, which is marked as one."
        )
    method = methods.get(recipe.merge_method)
    grid = _grid(method, grid)
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    recipes = [with_values(recipe, point) for point in points]
    for candidate in recipes:
        _resolve(method, candidate)
    judge = (
        OnBench(place, recipe, statistics, split=split, limit=limit, tasks=tasks, stop=stop)
        if isinstance(place, Bench)
        else Judge(place, statistics, stop)
    )
    chosen_seeds = tuple(dict.fromkeys(seeds or (recipe.seed,)))
    chosen_seeds = chosen_seeds if method.promises.random else chosen_seeds[:1]
    found = _measure_all(judge, recipes, points, chosen_seeds, progress=progress, stop=stop)
    scores = tuple(_point(point, results) for point, results in zip(points, found, strict=True))
    best = pick(scores)
    if best is None:
        raise TaskError(f"No point of the grid could be measured: {scores[0].error}")
    return Chosen(
        recipes[best], points[best], split, grid, scores, best,
        reason(scores, best, split, len(scores[best].tasks)), round(time.perf_counter() - started, 3),
        oracle=split == "test", limit=limit, suite=judge.suite, tasks=tuple(scores[best].tasks),
        items=judge.items, seeds=chosen_seeds, warnings=tuple(judge.warnings),
    )  # fmt: skip


def with_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """The recipe with these values of its parameters; ``init.NAME`` goes to the merge that it starts from."""
    own = {name: value for name, value in values.items() if not name.startswith(_INIT)}
    changed = recipe.replace(parameters={**recipe.parameters, **own})
    inner = {name.removeprefix(_INIT): value for name, value in values.items() if name.startswith(_INIT)}
    if not inner:
        return changed
    start = recipe.init
    if start is None:
        raise RecipeError(f"The grid has {_INIT}{next(iter(inner))}, but the recipe has no 'init' to give it to.")
    return changed.replace(init=replace(start, parameters={**start.parameters, **inner}))


def bench_for(recipe: Recipe, suite: str | None = None, *, device: str = "auto") -> Bench:
    """A bench of a recipe's models, measured on ``suite`` (default: the recipe's, else the starter zoo's)."""
    models = {name: entry.model for name, entry in recipe_experts(recipe).items()}
    base = recipe.base_model or next(iter(models.values()))
    return Bench(base, models, load_suite(suite or recipe.suite or "starter"), device=device)


def _grid(method: Method, grid: Mapping[str, Sequence[Any]]) -> dict[str, tuple[Any, ...]]:
    """The grid under the parameters' declared names, without repeats, every value checked; 0 iterations among them."""
    if not grid or any(isinstance(values, str) or not len(values) for values in grid.values()):
        raise TaskError("The grid is empty: name at least one parameter with at least one value to try.")
    out: dict[str, tuple[Any, ...]] = {}
    for name, values in grid.items():
        if name.startswith(_INIT) and method.init:
            out[name] = tuple(dict.fromkeys(values))
            continue
        parameter = method.parameter(name)
        checked = tuple(dict.fromkeys(parameter.check(value, repr(method.name)) for value in values))
        if parameter.name == _ITERATIONS and _solves(method):
            checked = (0, *(value for value in sorted(checked) if value))  # type: ignore[type-var]
        out[parameter.name] = checked
    return out


def _solves(method: Method) -> bool:
    return method.init and any(parameter.name == _ITERATIONS for parameter in method.parameters)


def _resolve(method: Method, recipe: Recipe) -> None:
    """Raise for values that do not go together, before anything is merged."""
    entries = recipe_experts(recipe)
    own = {name: entry.parameters for name, entry in entries.items() if entry.parameters}
    method.resolve(recipe.parameters, tuple(entries), own)
    if method.init and recipe.init is not None and recipe.init.merge_method not in (None, *PLAIN):
        methods.get(recipe.init.merge_method).resolve(recipe.init.parameters, tuple(entries))


def _states(
    judge: Judge,
    recipes: Sequence[Recipe],
    points: Sequence[Mapping[str, Any]],
    seeds: Sequence[int],
    *,
    progress: Progress | None,
    stop: Stop | None,
) -> Generator[tuple[int, State]]:
    """(index of the point, merged weights) for every point and seed; iterations of one solve come from one pass."""
    if not (_solves(methods.get(recipes[0].merge_method)) and _ITERATIONS in points[0]):
        for index, seed in itertools.product(range(len(points)), seeds):
            yield index, judge.merged(recipes[index].replace(seed=seed))
        return
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, point in enumerate(points):
        groups.setdefault(tuple(value for name, value in point.items() if name != _ITERATIONS), []).append(index)
    for members, seed in itertools.product(groups.values(), seeds):
        plan = judge.plan(recipes[members[-1]].replace(seed=seed))
        steps = [points[index][_ITERATIONS] for index in members]
        shots = merge_snapshots(plan, steps, device=judge.device, progress=progress, stop=stop)
        try:
            for index, step in zip(members, steps, strict=True):
                yield index, as_weights(plan, shots.state(step))
        finally:
            shots.close()


def _measure_all(
    judge: Judge,
    recipes: Sequence[Recipe],
    points: Sequence[Mapping[str, Any]],
    seeds: Sequence[int],
    *,
    progress: Progress | None,
    stop: Stop | None,
) -> list[list[Mapping[str, float] | str]]:
    """For every point, accuracy by task at every seed, or why it could not be measured."""
    found: list[list[Mapping[str, float] | str]] = [[] for _ in points]
    done, total = 0, len(points) * len(seeds)

    def solving(_done: int, _total: int, text: str) -> None:
        report(progress, done, total, text)

    # Closed at once where measuring stops or fails: a solve's snapshots lie on the disk.
    with closing(_states(judge, recipes, points, seeds, progress=solving, stop=stop)) as states:
        for index, state in states:
            report(progress, done, total, f"measuring {values_text(points[index])}")
            if stop is not None:
                stop.check()
            found[index].append(_measured(judge, state))
            done += 1
    report(progress, total, total, "chosen")
    return found


def _measured(judge: Judge, state: State) -> Mapping[str, float] | str:
    try:
        return dict(judge.measure(state))
    except CheckpointError as error:  # the weights have run away: no finite features
        return str(error)


def _point(values: Mapping[str, Any], results: Sequence[Mapping[str, float] | str]) -> GridPoint:
    failed = next((result for result in results if isinstance(result, str)), None)
    if failed is not None:
        return GridPoint(values, None, error=failed)
    known = [result for result in results if not isinstance(result, str)]
    tasks = {name: sum(result[name] for result in known) / len(known) for name in known[0]}
    by_seed = tuple(sum(result.values()) / len(result) for result in known)
    return GridPoint(values, sum(tasks.values()) / len(tasks), tasks, by_seed)
