"""Statistics that a method collects itself, through the layers that it has merged: they belong to one merge alone."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from ..errors import StatisticsError

if TYPE_CHECKING:
    from .plan import Plan

#: The key of the statistics' notes that says through which merge they were collected.
THROUGH = "through"


def through_hash(plan: Plan) -> str:
    """SHA-256 (hex) of what decides the merged layers that inputs pass: method, values, weights, start."""
    from .solve_log import init_text

    weights = [model.weights_hash for model in (*plan.models, *((plan.base,) if plan.base is not None else ()))]
    said = {"method": plan.method.name, "values": dict(plan.values), "weights": weights, "init": init_text(plan)}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def check_through(plan: Plan) -> None:
    """Raise StatisticsError for statistics of a `collects` method that were collected otherwise.

    Statistics that do not say which weights they are of are their giver's business.
    """
    if not plan.method.collects or not any(s is not None and s.weights_hash for s in plan.statistics):
        return
    wanted = through_hash(plan)
    for name, s in zip(plan.names, plan.statistics, strict=True):
        if s is None or not s.weights_hash or s.meta.get(THROUGH) == wanted:
            continue
        how = "through another merge" if THROUGH in s.meta else "through the expert's own layers"
        raise StatisticsError(
            f"{s.where}: they were collected {how}, and {plan.method.title} needs the inputs of {name!r} as its own "
            "merged layers make them; leave 'statistics' out, and it collects them when it is merged."
        )


def check_collected(plan: Plan) -> None:
    """Raise StatisticsError where a plan is merged before its method has collected what it needs."""
    if plan.method.collects and not plan.statistics:
        raise StatisticsError(
            f"{plan.method.title} collects its statistics through the layers that it merges, from pictures of every "
            "task: use python -m mergelab merge with a recipe that names a suite, or mergelab.runs.collected."
        )
