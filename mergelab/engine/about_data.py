"""What the pre-flight check says about statistics, the merge that a method starts from, and learned coefficients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .. import methods
from .findings import Finding
from .folder import data_used
from .joint import units
from .needs import kinds_of, read_for
from .plan import Plan
from .solve_log import init_text


def about_data(plan: Plan) -> Iterator[Finding]:
    """Statistics, the start, learned coefficients."""
    kinds = kinds_of(plan)
    if plan.method.collects and not plan.statistics:
        yield Finding(
            "ok",
            f"{plan.method.title} collects statistics first, block by block through what it has merged, on the suite's "
            "inputs; that takes minutes and is not in this estimate.",
        )
    elif kinds:
        joint = {bias.name for _, *others in units(plan) for bias in others}
        used = [item.name in joint or bool(read_for(plan, item.name)) for item in plan.items if item.merge]
        solved = sum(used)
        yield Finding(
            "ok",
            f"Statistics ({', '.join(kinds)}) of {len(plan.statistics)} tasks, {data_used(plan)}: {solved} of "
            f"{len(used)} tensors have them, the others become "
            f"{'what the init has' if plan.values.get('leftover') == 'init' else 'the mean of the models'}.",
        )
    for warning in plan.warnings:
        yield Finding("warn", warning, "Collect all tasks' statistics in one way, or go on knowing it.")
    if plan.method.init:
        yield Finding("ok", f"{plan.method.title} starts from {_start(plan)}.")
    if plan.method.learns and plan.learned is None:
        yield Finding(
            "ok",
            f"{plan.method.title} learns its coefficients first, on the suite's inputs; that takes minutes and is not "
            "in this estimate.",
        )


def _start(plan: Plan) -> str:
    said = init_text(plan)
    if isinstance(said, str):
        return {"average": "the mean of the models", "base": "the base"}.get(said, said)
    if "model" in said:
        return said["model"]
    usual = methods.get(said["merge_method"]).defaults()
    values = ", ".join(f"{key} {value}" for key, value in said["parameters"].items() if value != usual[key])
    return said["merge_method"] + (f" ({values})" if values else "")


def uses_base(plan: Plan) -> bool:
    """Whether the base's weights go into the merge, by the method or by what it starts from."""
    start: Any = plan.start
    if start == "base" or (hasattr(start, "method") and uses_base(start)):
        return True
    return plan.method.base == "required" or plan.method.needs_base(dict(plan.values))
