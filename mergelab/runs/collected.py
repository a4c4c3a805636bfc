"""Merges that collect their statistics themselves, through the layers that they have merged (RegMean++)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..calibration import collect_through
from ..calibration.through import batches_of
from ..engine import Plan, plan_recipe
from ..engine.needs import gather
from ..errors import MethodError, RecipeError, TaskError
from ..models import Model, build
from ..progress import Progress, Stop
from ..recipe import Recipe
from ..statistics import TaskStatistics
from ..tasks import Suite, load_suite
from ..training.inputs import data_used, drawn, task_of

#: Pictures that pass together. Sums do not depend on it.
_BATCH = 32


def prepare(
    recipe: Recipe,
    *,
    suite: Suite | str | Path | None = None,
    load: Callable[..., Any] | None = None,
    model: Model | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Plan:
    """The plan of a recipe whose method collects its statistics, with these collected: an ordinary merge from here on.

    Every model's inputs are pictures of the suite's task of its name (``suite`` stands for the recipe's); labels are
    never looked at. A recipe that names ``statistics`` of an earlier run gets those, checked to be of this very merge.
    ``load`` and ``model`` are for callers that hold them already.

    Raises RecipeError without a suite, TaskError when a model has no task or the task no pictures, StatisticsError for
    statistics of another merge.
    """
    plan = plan_recipe(recipe, load=load)
    if not plan.method.collects:
        raise MethodError(f"Method {plan.method.name!r} collects nothing while it is merged; merge it as it is.")
    if plan.statistics:
        return plan
    chosen = suite or recipe.suite
    if chosen is None:
        raise RecipeError(
            f"The method {plan.method.name!r} collects statistics on a suite's pictures and the recipe names no "
            "'suite'; name one, such as 'starter'."
        )
    opened = load_suite(chosen)
    runs = model or build(plan.reference, device=device)
    split = plan.values["inputs"]
    batches = {}
    for name in plan.names:
        task = task_of(opened, name)
        images = task.split(split)[0] if task.has(split) else ()
        if not len(images):
            raise TaskError(f"The task {task.name} has no {split} pictures to pass; take another split or suite.")
        places = drawn(len(images), plan.values["examples"], plan.seed, f"{task.name}/{split}")
        batches[name] = batches_of(images[places], _BATCH, runs.pixels)
    with runs.using(runs.weights) as module:
        found = collect_through(
            plan, module, batches, runs.through, spelling=runs.own_names([item.name for item in plan.items]),
            split=split, suite=opened.name, spill=True, device=runs.device, progress=progress, stop=stop,
        )  # fmt: skip
    return with_statistics(plan, found)


def said(plan: Plan) -> str:
    """In words, which pictures were used, and whether that makes the result transductive."""
    return data_used(
        {name: s.examples for name, s in zip(plan.names, plan.statistics, strict=True) if s is not None},
        plan.values["inputs"],
    )


def with_statistics(plan: Plan, found: Mapping[str, TaskStatistics]) -> Plan:
    """The plan with what was collected for it."""
    return replace(gather(plan, found), recipe=plan.recipe)
