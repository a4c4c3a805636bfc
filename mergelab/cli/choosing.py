"""The verb choose: the values of a recipe that are best on validation."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MergeLabError
from .common import Line, Verb, device, positive

if TYPE_CHECKING:
    from ..runs.chosen import Chosen

#: Above so many tasks the table shows their mean alone; --json has them all.
_MOST_COLUMNS = 12


def add(verb: Verb) -> None:
    """Declare the verb."""
    choose = verb(
        "choose", _choose, "Choose a recipe's parameters on validation data, from a grid.",
        "Test data chooses nothing. Iterations of a solver come from one pass, 0 among them.",
    )  # fmt: skip
    choose.add_argument(
        "recipe", metavar="RECIPE.yaml", help="the recipe, as YAML or JSON (examples in assets/recipes)"
    )
    choose.add_argument(
        "--grid", required=True, action="append", metavar="NAME=V1,V2,…",
        help="a parameter and the values to try, the smaller change first; several times for several parameters; "
        "init.NAME is a parameter of the merge that the method starts from",
    )  # fmt: skip
    choose.add_argument(
        "--suite", metavar="SUITE", help="what measures: a zoo's name or a folder (default: the recipe's)"
    )
    choose.add_argument("--tasks", metavar="A,B", help="only these tasks, by name (default: those merged)")
    choose.add_argument("--limit", type=positive, metavar="N", help="at most N items a task (a fixed, balanced subset)")
    choose.add_argument("--split", default="val", choices=("val", "train", "test"), help="default: val")
    choose.add_argument(
        "--oracle", action="store_true", help="let test data choose (with --split test); marked as such"
    )
    choose.add_argument("--seeds", metavar="A,B", help="seeds of the merge, for methods with randomness")
    choose.add_argument("--stats", metavar="DIR", help="the tasks' statistics, instead of the recipe's")
    choose.add_argument("--out", metavar="RECIPE_OUT.yaml", help="write the recipe with the chosen values")
    choose.add_argument("--overwrite", action="store_true", help="replace RECIPE_OUT.yaml if it exists")
    device(choose)
    choose.add_argument("--json", action="store_true", help="print everything that led to the choice as JSON")


def _choose(arguments: Any) -> int:
    from ..recipe import Recipe
    from ..runs.choose import bench_for, choose

    grid = parse_grid(arguments.grid)
    recipe = Recipe.read(arguments.recipe)
    if arguments.stats:
        recipe = recipe.replace(statistics=arguments.stats)
    if arguments.out:
        _check_out(arguments.out, arguments.overwrite)
    if arguments.suite and recipe.suite is None:
        recipe = recipe.replace(suite=arguments.suite)  # what a method learns from is then in the recipe
    tasks = [name.strip() for name in arguments.tasks.split(",")] if arguments.tasks else None
    line = Line()
    chosen = choose(
        bench_for(recipe, arguments.suite, device=arguments.device), recipe, grid, split=arguments.split,
        limit=arguments.limit, tasks=tasks, seeds=_seeds(arguments.seeds), oracle=arguments.oracle, progress=line,
    )  # fmt: skip
    line.end()
    for warning in chosen.warnings:
        print(f"mergelab: {warning}", file=sys.stderr)
    if arguments.out:
        write_recipe(chosen, arguments.out, overwrite=arguments.overwrite)
    print(json.dumps(chosen.to_dict(), indent=2) if arguments.json else chosen_text(chosen))
    if arguments.out and not arguments.json:
        print(f"Next: python -m mergelab merge {arguments.out} --out DIR")
    return 0


def parse_grid(texts: list[str]) -> dict[str, list[Any]]:
    """``["iterations=0,5", "lambda=0.1"]`` -> values by name; numbers as numbers, true and false as such."""
    grid: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        parts = [part.strip() for part in values.split(",")]
        if not equals or not name.strip() or not all(parts):
            raise MergeLabError(f"--grid {text!r} is not understood; write it as NAME=V1,V2, such as lambda=0.1,0.2.")
        if name.strip() in grid:
            raise MergeLabError(f"--grid names {name.strip()!r} twice; give all its values in one.")
        grid[name.strip()] = [_value(part) for part in parts]
    return grid


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _seeds(text: str | None) -> list[int] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise MergeLabError(f"--seeds {text!r} is not understood; write whole numbers, such as 0,1,2.")
    return [int(part) for part in parts]


def chosen_text(chosen: Chosen) -> str:
    """The grid as a table in per cent, the taken row marked, and why it was taken."""
    tasks = list(chosen.tasks) if len(chosen.tasks) <= _MOST_COLUMNS else []
    names = list(chosen.grid)
    widths = [max(len(name), *(len(_shown(value)) for value in chosen.grid[name])) for name in names]
    head = "  ".join(f"{name:>{width}}" for name, width in zip(names, widths, strict=True))
    rows = [
        "  "
        + head
        + "  "
        + f"{'mean %':>7}"
        + "".join(f"  {task[:12]:>{max(5, min(12, len(task)))}}" for task in tasks)
    ]
    for index, point in enumerate(chosen.scores):
        values = "  ".join(f"{_shown(point.parameters[n]):>{w}}" for n, w in zip(names, widths, strict=True))
        mark = "*" if index == chosen.best else " "
        mean = "–" if point.accuracy is None else f"{100 * point.accuracy:.2f}"
        cells = "".join(
            f"  {100 * point.tasks[task]:>{max(5, min(12, len(task)))}.1f}" if task in point.tasks
            else f"  {'–':>{max(5, min(12, len(task)))}}" for task in tasks
        )  # fmt: skip
        rows.append(f"{mark} {values}  {mean:>7}{cells}")
    rows.append(chosen.why)
    if chosen.oracle:
        rows.append("ORACLE: test data chose; this is what could be had, not what would have been found.")
    rows.append(data_text(chosen))
    return "\n".join(rows)


def data_text(chosen: Chosen) -> str:
    """What was looked at, in one line."""
    counts = sorted(set(chosen.items.values()))
    items = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}" if counts else "some"
    seeds = f"; seeds {', '.join(map(str, chosen.seeds))}" if len(chosen.seeds) > 1 else ""
    where = f"{chosen.suite}, " if chosen.suite else ""
    return (
        f"{where}split {chosen.split}, {items} items a task, {len(chosen.tasks)} tasks{seeds}; {chosen.seconds:.1f} s"
    )


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _check_out(out: str, overwrite: bool) -> None:
    if Path(out).exists() and not overwrite:
        raise MergeLabError(f"{out} exists: choose another place for the recipe, or allow --overwrite.")


def write_recipe(chosen: Chosen, out: str | Path, *, overwrite: bool = False) -> Path:
    """The chosen recipe as YAML, with how it was chosen in its first lines."""
    from ..checkpoints.shards import write_file
    from ..checkpoints.whole import whole_file

    grid = "; ".join(f"{name} in {', '.join(map(_shown, values))}" for name, values in chosen.grid.items())
    mark = " ORACLE: test data chose." if chosen.oracle else ""
    lines = [f"# {chosen.why}{mark}", f"# The grid: {grid}. Measured on {data_text(chosen)}."]
    with whole_file(out, overwrite=overwrite) as partial:
        write_file(partial, "\n".join(lines) + "\n" + chosen.recipe.to_yaml())
    return Path(out)
