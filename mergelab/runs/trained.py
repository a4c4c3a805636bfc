"""Merges whose coefficients are learned first: with the coefficients a recipe is an ordinary merge."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..engine import Plan, plan_recipe
from ..errors import MethodError, RecipeError
from ..models import Model, build
from ..progress import Progress, Stop
from ..recipe import Recipe
from ..tasks import Suite, load_suite
from ..training import Learned, learn, unlabelled
from ..training.learned import LEARNED_FILE

__all__ = ["LEARNED_FILE", "Learned", "learned_files", "lines", "planned", "prepare", "summary"]


def prepare(
    recipe: Recipe,
    *,
    learned: str | Path | Learned | None = None,
    suite: Suite | str | Path | None = None,
    load: Callable[..., Any] | None = None,
    model: Model | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Learned:
    """The coefficients of a recipe whose method learns them.

    ``learned`` (or the recipe's own key ``learned``): coefficients of an earlier run, from its
    ``mergelab_learned.json`` or merged folder; then nothing is learned, but that they belong to these models is
    checked. ``suite`` stands for the recipe's; every model's inputs and head are those of the suite's task of its name.
    ``load`` and ``model`` (built from the recipe's base) are for callers that hold them already.

    Raises RecipeError without a suite, TaskError when a model has no task, MethodError when the given coefficients
    belong to other models, and what :func:`~mergelab.training.adamerging.learn` raises.
    """
    plan = plan_recipe(recipe, load=load)
    if not plan.method.learns:
        raise MethodError(f"Method {plan.method.name!r} has nothing to learn; merge it as it is.")
    given = learned if learned is not None else recipe.learned
    if given is not None:
        return fitting(given if isinstance(given, Learned) else Learned.read(given), plan)
    chosen = suite or recipe.suite
    if chosen is None:
        raise RecipeError(
            f"The method {plan.method.name!r} learns on a suite's pictures and the recipe names no 'suite'; "
            f"name one, such as 'starter', or point 'learned' at the {LEARNED_FILE} of an earlier run."
        )
    opened = load_suite(chosen)
    runs = model or build(plan.base, device=device)
    values = plan.values
    inputs = unlabelled(
        runs, opened, plan.names, split=values["inputs"], examples=values["examples"], seed=plan.seed
    )  # fmt: skip
    found = learn(runs, plan, inputs, suite=opened.name, progress=progress, stop=stop)
    return replace(found, weights=hashes(plan))


def planned(recipe: Recipe, learned: Learned, *, load: Callable[..., Any] | None = None) -> Plan:
    """The plan of a recipe with its learned coefficients: an ordinary merge from here on."""
    plan = plan_recipe(recipe, load=load)
    return replace(plan, learned=fitting(learned, plan).ordered(plan.names))


def learned_files(learned: Learned) -> dict[str, str]:
    """The file that is written beside the merged weights, by name."""
    return {LEARNED_FILE: learned.to_json()}


def summary(learned: Learned) -> dict[str, Any]:
    """What a person should see of it, as plain data: data, seconds, entropy before and after, warnings."""
    ends = [sum(row) / len(row) for row in (learned.entropy[:1] + learned.entropy[-1:])]
    return {
        "data_used": learned.data_used,
        "transductive": learned.transductive,
        "per": learned.settings.get("per"),
        "steps": len(learned.entropy),
        "samples": learned.samples,
        "seconds": learned.seconds,
        "entropy": [round(value, 4) for value in ends],
        "findings": list(learned.findings),
    }


def lines(learned: Learned) -> list[str]:
    """`summary` as text."""
    found = summary(learned)
    fell = f"; mean entropy {found['entropy'][0]:.3f} to {found['entropy'][1]:.3f}" if found["entropy"] else ""
    steps = f"{found['steps']} step{'' if found['steps'] == 1 else 's'}"
    first = (
        f"Coefficients learned per {found['per']} in {steps} ({found['seconds']:.1f} s) on {found['data_used']}{fell}"
    )
    return [first, *(f"  {finding}" for finding in found["findings"])]


def fitting(learned: Learned, plan: Plan) -> Learned:
    """``learned`` if it belongs to the plan's models, tensors, split and weights; MethodError says what differs."""
    learned.ordered(plan.names)
    wanted = {item.name for item in plan.items if item.merge}
    if wanted - set(learned.coefficients):
        missing = sorted(wanted - set(learned.coefficients))
        raise MethodError(
            f"The learned coefficients have none for {len(missing)} merged tensors (the first: {missing[0]!r}); they "
            "belong to another architecture, so learn them again."
        )
    for key in ("split", "density"):
        before, now = learned.settings.get(key), plan.values[key]
        if before != now and (key == "split" or plan.values["split"] == "ties"):
            raise MethodError(
                f"The coefficients were learned with {key} {before!r}, but the recipe says {now!r}; take the same, or "
                "learn them again."
            )
    if learned.weights:
        _same_weights(learned.weights, hashes(plan))
    return learned


def _same_weights(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    for name, digest in now.items():
        if name in before and before[name] != digest:
            raise MethodError(
                f"The coefficients were learned for other weights of {name!r} (hash {before[name][:12]}, found "
                f"{digest[:12]}); learn them again."
            )


def hashes(plan: Plan) -> dict[str, str]:
    """Model name (and ``base``) -> hash of its weights."""
    named = {**dict(zip(plan.names, plan.models, strict=True)), "base": plan.base}
    return {name: checkpoint.weights_hash for name, checkpoint in named.items() if checkpoint is not None}
