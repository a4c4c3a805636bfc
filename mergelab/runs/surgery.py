"""Representation Surgery on a merged checkpoint: finds its experts, heads and pictures; measures with corrections."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints import Checkpoint, load
from ..engine.folder import RECIPE_FILE
from ..errors import TaskError, suggest
from ..models import Model, build
from ..progress import Progress, Stop
from ..recipe import Recipe
from ..tasks import Evaluation, Suite, evaluate, load_suite
from ..training.correction import Surgery
from ..training.inputs import drawn, known_heads, task_of, unlabelled
from ..training.surgery import Operated, SurgerySettings, operate
from ..zoo import open_zoo

__all__ = ["Operated", "Surgery", "SurgerySettings", "evaluate_with_surgery", "experts_of", "operate_on"]
#: Pictures of the same split that the bias is measured on beside those fitted on.
HELD_OUT = 128


def operate_on(
    merged: str | Path | Checkpoint,
    suite: Suite | str | Path = "starter",
    *,
    experts: Mapping[str, Any] | None = None,
    tasks: Iterable[str] | None = None,
    split: str = "val",
    examples: int | None = 256,
    settings: SurgerySettings | None = None,
    model: Model | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Operated:
    """Fit corrections of a merged checkpoint for every task of ``suite`` that has an expert (or for ``tasks``).

    ``experts``: task -> checkpoint or source; default: the models of the recipe that lies with the merged weights, and
    the experts of the suite's zoo. Only pictures of ``split`` are read, never their labels.

    Raises TaskError when a task has no expert, pictures or head; CheckpointError when weights do not fit.
    """
    opened = load_suite(suite)
    checkpoint = load(merged)
    known = {**experts_of(checkpoint, opened), **(experts or {})}
    chosen = _chosen(opened, known, tasks)
    runs = model or build(checkpoint, device=device)
    settings = settings or SurgerySettings()
    inputs = unlabelled(runs, opened, chosen, split=split, examples=examples, seed=settings.seed)
    held = {one.task: _others(opened, one.task, split, examples, settings.seed) for one in inputs}
    states = {name: load(known[name]) for name in chosen}
    return operate(
        runs, checkpoint, states, inputs, settings, weights_hash=checkpoint.weights_hash, held_out=held,
        suite=opened.name, source=checkpoint.name, progress=progress, stop=stop,
    )  # fmt: skip


def experts_of(checkpoint: Checkpoint, suite: Suite) -> dict[str, str]:
    """Task -> source of its expert: the models of the merge's own recipe, then the suite's zoo's."""
    found: dict[str, str] = {}
    if suite.zoo is not None:
        found.update(open_zoo(suite.zoo).experts)
    path = checkpoint.folder / RECIPE_FILE if checkpoint.folder is not None else None
    if path is not None and path.is_file():
        recipe = Recipe.read(path)
        found.update({n: e.model for n, e in zip(recipe.names, recipe.models, strict=True) if n in suite.names})
    return found


def evaluate_with_surgery(
    merged: str | Path | Checkpoint,
    surgery: str | Path | Surgery,
    suite: Suite | str | Path = "starter",
    *,
    tasks: Iterable[str] | None = None,
    device: str = "auto",
    **options: Any,
) -> Evaluation:
    """Measure a merged checkpoint behind its corrections; tasks without one are measured as they are.

    Raises CheckpointError when the surgery belongs to other weights. The result's ``data_used`` says what the
    corrections were fitted on and that the task must be known.
    """
    opened = load_suite(suite)
    checkpoint = load(merged)
    runs = build(checkpoint, device=device)
    made = surgery if isinstance(surgery, Surgery) else Surgery.read(surgery)
    made.check(checkpoint.weights_hash, runs.width, checkpoint.name)
    measured = opened.pick(tasks)
    if not any(task.name in made.corrections for task in measured):
        raise TaskError(
            f"The surgery has corrections for {', '.join(made.corrections)}, none of which is measured; evaluate "
            "without it, or choose one of these tasks."
        )
    heads = made.heads(known_heads(runs, opened, measured))
    found = evaluate(runs, opened, tasks=[task.name for task in measured], heads=heads, **options)
    return replace(found, source=str(merged), data_used=f"{found.data_used}; {made.data_used}")


def _chosen(suite: Suite, experts: Mapping[str, Any], tasks: Iterable[str] | None) -> list[str]:
    """The tasks to correct, in the suite's order; TaskError when one that was asked for has no expert."""
    if tasks is None:
        chosen = [task.name for task in suite if task.name in experts]
        if not chosen:
            raise TaskError(
                f"No expert of a task of the suite {suite.name} is known, so there is nothing to correct towards; "
                "name some with --expert TASK=SOURCE."
            )
        return chosen
    chosen = [task.name for task in suite.pick(tasks)]
    for name in chosen:
        if name not in experts:
            raise TaskError(
                f"The task {name} has no expert to correct towards; name one with --expert {name}=SOURCE."
                f"{suggest(name, experts)}"
            )
    return chosen


def _others(suite: Suite, name: str, split: str, examples: int | None, seed: int) -> Tensor:
    """Up to `HELD_OUT` pictures of the split that are not fitted on."""
    images = task_of(suite, name).split(split)[0]
    fitted = drawn(len(images), examples, seed, f"{name}/{split}")
    more = drawn(len(images), None if examples is None else examples + HELD_OUT, seed, f"{name}/{split}")
    return images[more[~torch.isin(more, fitted)]]
