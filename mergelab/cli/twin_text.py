"""What the verb twin prints for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_BAR = 30


def built_text(told: Mapping[str, Any]) -> str:
    seconds = ", ".join(f"{phase} {value:.1f} s" for phase, value in told["seconds"].items())
    return "\n".join([f"{told['out']}: a routed model of {len(told['tasks'])} tasks ({seconds})", shown_text(told),
                      f"Next: python -m mergelab twin evaluate {told['out']}"])  # fmt: skip


def shown_text(told: Mapping[str, Any]) -> str:
    """Bytes, ranks, kept energy, and how well the router knows the tasks."""
    size = told["bytes"]
    rows = [
        f"{'task':<14} {'MB':>7}  {'rank':>5}  {'factored':>8}  {'whole':>5}  {'energy kept %':>13}  {'classes':>7}"
    ]
    for name, task in told["tasks"].items():
        kept = "–" if not isinstance(task["kept"], (int, float)) else f"{100 * task['kept']:.1f}"
        rows.append(f"{name:<14} {task['bytes'] / 1e6:>7.2f}  {task['largest_rank']:>5}  {task['factored']:>8}  "
                    f"{task['whole']:>5}  {kept:>13}  {task['classes'] or '–':>7}")  # fmt: skip
    sums = ", ".join(f"{name} {size[name] / 1e6:.2f} MB" for name in ("shared", "exclusive", "router", "heads"))
    rows.append(f"{sums}: {size['total'] / 1e6:.2f} MB")
    for name, router in told["routers"].items():
        score = router["validation_accuracy"]
        right = "not measured" if score is None else f"{100 * score:.1f} % right on held-out items"
        rows.append(f"{name.replace('_', ' ')}: {router['kind']} on {router['features']} features, {right}")
        rows += [f"  note: {warning}" for warning in router["warnings"] or []]
    if not told["routers"]:
        rows.append("router: none; weights are given with every call")
    run = told["inference"]
    rows.append(f"data used: {told['data_used']}; runs as mode {run['mode']}, head {run['head']}")
    return "\n".join(rows)


def head_text(result: Mapping[str, Any]) -> str:
    """Under the table of an evaluation: head policy, mode, router, seconds, bytes."""
    said = {
        "oracle": "oracle head: every input comes with its task, so this is an upper bound",
        "router_argmax": "head of the task that the router finds likeliest; task and class must be right",
        "max_logit": "highest logit of all heads; task and class must be right",
    }[result["head"]]
    router, size = result["router"], result["bytes"]
    right = "" if router.get("accuracy") is None else f"{100 * router['accuracy']:.1f} % of inputs to their own expert"
    for key, text in (("when_right", "accuracy there"), ("when_wrong", "elsewhere")):
        right += "" if router.get(key) is None else f", {text} {100 * router[key]:.1f} %"
    phases = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in result["phases"].items() if seconds)
    return "\n".join([
        f"head   {said}",
        f"mode   {result['mode']} ({result['why']}); {result['merges']} merges; {phases}",
        f"router {right or 'not asked'}",
        f"bytes  {size['total'] / 1e6:.1f} MB, {size['exclusive'] / 1e6:.1f} MB of it exclusive parts",
    ])  # fmt: skip


def predicted_text(told: Sequence[Mapping[str, Any]]) -> str:
    """Per picture: a bar per task, then the likeliest classes."""
    rows = []
    for one in told:
        rows.append(f"{one['image']} (mode {one['mode']})")
        width = max(len(name) for name in one["weights"])
        most = max([abs(weight) for weight in one["weights"].values()] + [1.0])
        for name, weight in one["weights"].items():
            rows.append(f"  {name:<{width}} {weight:6.3f} {'█' * round(_BAR * abs(weight) / most)}")
        best = ", ".join(f"{top['class']} {100 * top['probability']:.1f} %" for top in one["top"]) or "no head"
        rows.append(f"  {one['task']}: {best}  [{one['policy']}]")
    return "\n".join(rows)
