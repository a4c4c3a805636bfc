"""The path of a solver: merged weights at every snapshot from one pass, measured on validation, kept for a slider."""

from __future__ import annotations

import time
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..engine.adapters import as_weights
from ..engine.snapshots import GRID, Snapshots, merge_snapshots
from ..engine.solve_log import LEFT
from ..errors import CheckpointError, MethodError, TaskError
from ..progress import Progress, Stop, report
from ..recipe import Recipe
from ..tasks import evaluate
from .data_plans import data_plan

if TYPE_CHECKING:
    from .bench import Bench

__all__ = ["GRID", "SolvePath", "merge_log", "snapshot_of", "solve_path"]
#: Paths whose weights stay on disk, in all benches together: each is one model a snapshot.
_MOST = 2
_kept: OrderedDict[tuple[Any, ...], SolvePath] = OrderedDict()


@dataclass(frozen=True, eq=False)
class SolvePath:
    """One path. ``points``: for every k of the grid ``{"k", "objective", "residual", "accuracy", "tasks", "error"}``
    (objective: the sum over all solved tensors, residual its root of summed squares; accuracy on ``split``).

    ``best`` is the index of the point that is best on validation, the first of equal ones. ``blocks``: one row a
    tensor: ``{"tensor", "shape", "by", "why", "stopped", "change": [at every k]}``.
    """

    recipe: Recipe
    grid: tuple[int, ...]
    points: tuple[Mapping[str, Any], ...]
    blocks: tuple[Mapping[str, Any], ...]
    best: int | None
    split: str
    limit: int | None
    seconds: float
    snapshots: Snapshots

    def to_dict(self) -> dict[str, Any]:
        """Everything but the weights, as plain data."""
        return {
            "key": path_hash(self.recipe), "recipe": self.recipe.to_dict(), "grid": list(self.grid),
            "points": [dict(point) for point in self.points], "blocks": [dict(block) for block in self.blocks],
            "best": self.best, "split": self.split, "limit": self.limit, "seconds": self.seconds,
        }  # fmt: skip


def path_hash(recipe: Recipe) -> str:
    """The recipe without its iterations: all points of one path have the same."""
    return recipe.replace(parameters={**recipe.parameters, "iterations": 0}).hash


def solve_path(
    bench: Bench,
    recipe: Recipe,
    grid: Sequence[int] = GRID,
    *,
    limit: int | None = 40,
    split: str = "val",
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> SolvePath:
    """Solve once up to the largest k of ``grid``, keep the weights at each, and measure them on validation.

    The accuracy is the mean over the recipe's tasks on at most ``limit`` pictures of each. A later call with the same
    grid and limit gives the kept path; :func:`snapshot_of` its weights. Raises TaskError for the split test, on which
    nothing is chosen; Cancelled after ``stop``, and nothing stays.
    """
    if split == "test":
        raise TaskError("Nothing is chosen on test data: measure the path on the split 'val'.")
    grid = tuple(sorted({0, *grid}))
    key = (weakref.ref(bench), path_hash(recipe), grid, limit, split)  # an id would come again for another bench
    if key in _kept:
        return _kept[key]
    started = time.perf_counter()
    model, suite = bench.model(), bench.suite
    assert suite is not None  # the model is there only with a suite
    tasks = [name for name in recipe.names if name in suite.names]
    if not tasks:
        raise TaskError("None of the merged experts has a task of its name in the suite, so there is no path to show.")
    total = 100
    half = total // 2

    def solving(done: int, of: int, text: str) -> None:
        report(progress, half * done // max(1, of), total, f"solving {text}")

    plan = data_plan(bench, recipe.replace(out_dtype=None), bench.loader(recipe))
    shots = merge_snapshots(plan, grid, device=bench.device, progress=solving, stop=stop)
    try:
        points, changes = [], []
        first = shots.state(grid[0])
        for place, k in enumerate(grid):
            report(progress, half + half * place // len(grid), total, f"measuring {k} iterations on {split}")
            state = first if place == 0 else shots.state(k)
            changes.append({name: _distance(state[name], first[name]) for name in first})
            point: dict[str, Any] = {"k": k, "objective": None, "residual": None, "accuracy": None, "tasks": {}}
            try:
                whole = as_weights(plan, state)
                found = evaluate(model, suite, split=split, limit=limit, tasks=tasks, state=whole, stop=stop)
            except CheckpointError as error:  # the weights have run away: no finite features
                points.append({**point, "error": str(error)})
                continue
            scores = {name: score.accuracy for name, score in found.tasks.items()}
            points.append({**point, "accuracy": sum(scores.values()) / len(scores), "tasks": scores})
    except BaseException:
        shots.close()
        raise
    for point in points:
        point.update(_at(shots.log, point["k"]))
    blocks = tuple(_block(entry, [change.get(entry["tensor"], 0.0) for change in changes]) for entry in shots.log)
    made = SolvePath(
        recipe, grid, tuple(points), blocks, _best(points), split, limit, round(time.perf_counter() - started, 2), shots
    )  # fmt: skip
    _keep(key, made)
    return made


def snapshot_of(bench: Bench, recipe: Recipe) -> dict[str, torch.Tensor] | None:
    """The weights of a recipe whose iterations are on a kept path of this bench, in float32; else None."""
    k = recipe.parameters.get("iterations")
    wanted = path_hash(recipe)
    for key, path in list(_kept.items()):
        if key[:2] == (weakref.ref(bench), wanted) and k in path.grid:
            try:
                shots = path.snapshots
                state = as_weights(shots.plan, shots.state(int(k)))  # type: ignore[arg-type]
            except (MethodError, CheckpointError, OSError):  # its files are gone: solve again
                _kept.pop(key, None)
                continue
            return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    return None


def merge_log(
    bench: Bench, recipe: Recipe, *, progress: Progress | None = None, stop: Stop | None = None
) -> list[dict[str, Any]]:
    """What a matched merge writes down about every tensor, for methods without a path; rows as a path's ``blocks``."""
    from ..engine import stream

    log: list[Mapping[str, Any]] = []
    plan = data_plan(bench, recipe.replace(out_dtype=None), bench.loader(recipe))
    for _ in stream(plan, device=bench.device, progress=progress, stop=stop, log=log.append):
        pass
    return [_block(entry, [entry["moved"]]) for entry in log]


def _block(entry: Mapping[str, Any], moved: Sequence[float]) -> dict[str, Any]:
    far = entry["task_vector"]
    return {
        "tensor": entry["tensor"], "shape": list(entry["shape"]), "by": entry["by"], "why": entry["why"],
        "stopped": entry["stopped"], "left": entry["by"] in LEFT,
        "change": [value / far if far else 0.0 for value in moved],
    }  # fmt: skip


def _at(log: Sequence[Mapping[str, Any]], k: int) -> dict[str, float | None]:
    """Objective and residual of all solved tensors after ``k`` iterations; those that stopped stay at their last."""
    solved = [entry for entry in log if entry.get("objective")]
    if not solved:
        return {"objective": None, "residual": None}
    objective = sum(float(entry["objective"][min(k, len(entry["objective"]) - 1)]) for entry in solved)
    squares = sum(float(entry["residual"][min(k, len(entry["residual"]) - 1)]) ** 2 for entry in solved)
    return {"objective": objective, "residual": squares**0.5}


def _best(points: Sequence[Mapping[str, Any]]) -> int | None:
    known = [point["accuracy"] for point in points if point["accuracy"] is not None]
    if not known:
        return None
    return next(i for i, p in enumerate(points) if p["accuracy"] is not None and p["accuracy"] >= max(known) - 1e-9)


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    if a is b or not a.is_floating_point():
        return 0.0
    return float(torch.linalg.vector_norm(a.double() - b.double()))


def _keep(key: tuple[Any, ...], path: SolvePath) -> None:
    _kept[key] = path
    while len(_kept) > _MOST:
        _kept.popitem(last=False)[1].snapshots.close()
