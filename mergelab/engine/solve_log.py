"""What a matched merge wrote down about every tensor, as one document beside the weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..recipe import Init
from .plan import Plan

SOLVE_FILE = "mergelab_solve.json"
_FORMAT = "mergelab-solve/1"
#: How a tensor was merged when the method's system did not do it.
LEFT = ("average", "init", "fisher")


def solve_document(plan: Plan, log: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Method, start, statistics and every tensor's entry; which tensors were left, by what and why.

    An entry has ``tensor``, ``shape``, ``by`` (``cg``, ``cholesky``, ``eigen``, ``closed form``; ``experts`` where all
    are equal; ``average``, ``init`` or ``fisher`` where the system was not used, with ``why``), ``stopped`` (why the
    solver ended), ``moved`` ‖x − x0‖, ``task_vector`` (the mean ‖θ_t − θ0‖), ``change`` (their ratio), and for ``cg``
    ``iterations``, ``objective`` and ``residual`` (one value per iteration, the start first). ``cast_error``: what the
    output dtype cost, relative to the tensor's norm, where it is narrower than the one computed in.
    """
    return {
        "format": _FORMAT,
        "method": plan.method.name,
        "models": list(plan.names),
        "parameters": dict(plan.values),
        "init": init_text(plan),
        "statistics": [
            None if s is None else {
                "task": s.task, "split": s.split, "examples": s.examples, "fisher": s.fisher, "kinds": list(s.kinds),
                "weights_hash": s.weights_hash,
            } for s in plan.statistics
        ],
        "warnings": list(plan.warnings),
        "summary": summary(log),
        "tensors": [dict(entry) for entry in log],
    }  # fmt: skip


def solve_json(plan: Plan, log: Sequence[Mapping[str, Any]]) -> str:
    """The document as JSON."""
    return json.dumps(_plain(solve_document(plan, log)), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def summary(log: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many tensors were merged by what, for those left by the system reason -> names, what looks wrong, and the
    largest ``cast_error``."""
    by: dict[str, int] = {}
    left: dict[str, list[str]] = {}
    stopped: dict[str, int] = {}
    wrong: dict[str, str] = {}
    for entry in log:
        if entry.get("warning"):
            wrong[entry["tensor"]] = entry["warning"]
        by[entry["by"]] = by.get(entry["by"], 0) + 1
        if entry["stopped"]:
            stopped[entry["stopped"]] = stopped.get(entry["stopped"], 0) + 1
        if entry["by"] in LEFT and entry["why"]:
            left.setdefault(f"{entry['by']}: {entry['why']}", []).append(entry["tensor"])
    lost = max((entry.get("cast_error", 0.0) for entry in log), default=0.0)
    return {"by": by, "stopped": stopped, "left": left, "warnings": wrong, "cast_error": lost}


def init_text(plan: Plan) -> Any:
    """The start in words or plain data, as a recipe writes it."""
    start: Any = plan.start
    if start is None or isinstance(start, str):
        return start or "average"
    if not hasattr(start, "method"):
        return {"model": str(start.source)}
    values = {}
    for key, value in start.values.items():
        same = isinstance(value, list) and all(one == value[0] for one in value)
        values[key] = value[0] if same else value
    return {"merge_method": start.method.name, "parameters": values} if values else start.method.name


def recipe_init(plan: Plan) -> Init | None:
    """The start as a recipe's ``init``; values that differ between models are left out."""
    if plan.start is None:
        return None
    said = init_text(plan)
    if isinstance(said, dict) and "parameters" in said:
        said["parameters"] = {k: v for k, v in said["parameters"].items() if not isinstance(v, list)}
    return Init.of(said)


def _plain(value: Any) -> Any:
    """Without NaN and infinities, which JSON has not."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
