"""The models of a folder with their names on paper: where runs started and ended, rounds, experts, their merges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...progress import Stop
from .iterates import TITLES, Runs
from .landscape import Marked
from .one_shot import merged as merged_once
from .one_shot import moved


def title_of(name: str) -> str:
    """What a run is called on paper."""
    return TITLES.get(name, name)


def numbers(runs: Runs, name: str) -> range:
    """Numbers of a run's rounds that have ended."""
    return range(1, runs.rounds(name) + 1)


def _start(runs: Runs, heads: bool = False) -> Marked:
    plain_base = next(iter(runs.records.values())).recipe.start is None
    return Marked("base" if plain_base else "start", runs.start(heads), "base", "base")


def _whole(runs: Runs, name: str, number: int, title: str, heads: bool = False) -> Marked:
    state = runs.after(name, number, heads)
    return Marked(title, state, title_of(name), "merged" if runs.records[name].kind == "atm" else "kept")


def ends(runs: Runs) -> list[Marked]:
    """The start, and every run's last model, with heads where those were trained."""
    ended = [_whole(runs, name, runs.rounds(name), title_of(name), heads=True) for name in runs.wholes]
    return [_start(runs, heads=True), *ended]


def rounds(runs: Runs) -> list[Marked]:
    """The start, and every run's model after every round."""
    after = [_whole(runs, name, k, f"{title_of(name)} {k}") for name in runs.wholes
             for k in numbers(runs, name)]  # fmt: skip
    return [_start(runs), *after]


def experts(runs: Runs, heads: bool = False) -> list[Marked]:
    """The experts that were trained apart, as they ended; none where there is no such run."""
    name = runs.apart
    if name is None:
        return []
    record, number = runs.records[name], runs.rounds(name)
    titles = dict(record.titles) if len(set(record.titles.values())) == len(record.tasks) else {}
    return [Marked(titles.get(task, task), runs.expert(name, number, task, heads), "experts", "experts")
            for task in record.tasks]  # fmt: skip


def kept_rounds(runs: Runs, name: str) -> tuple[list[Any], list[dict[str, Any]]]:
    """The models and the experts of all rounds, as :func:`~.controls.drift` takes them."""
    tasks, count = runs.records[name].tasks, numbers(runs, name)
    tuned = [{task: runs.expert(name, k, task) for task in tasks} for k in count]
    return [runs.after(name, k) for k in (0, *count)], tuned


def merges(runs: Runs, rows: Sequence[Mapping[str, Any]], stop: Stop | None) -> list[Marked]:
    """One-shot merges of the experts as they ended, made again as a comparison's rows say."""
    name = runs.apart
    if name is None or not rows:
        return []
    record, number = runs.records[name], runs.rounds(name)
    last = record.points[-1]["epochs"]
    files = {task: runs.expert_file(name, number, task) for task in record.tasks}
    start, out = runs.start(), []
    for row in rows:
        if row["epochs"] != last or not (row["tuned"] or row["method"] == "mean"):
            continue
        method, alpha = row["method"], row["parameters"].get("alpha", 1.0)
        made = moved(start, merged_once(method, start, files, record.recipe.seed, stop), alpha)
        title = "average" if method == "mean" else f"{method} {alpha:g}"
        out.append(Marked(title, {**start, **made}, "one-shot merges"))
    return out
