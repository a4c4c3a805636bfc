"""The verbs atm and train: alternating tuning and merging, joint training, experts; beside what they compare with."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from ..errors import MergeLabError
from .common import Line, Verb, device, positive

_KINDS = ("joint", "experts", "atm")


def add(verb: Verb) -> None:
    """Declare the verbs."""
    atm = verb(
        "atm", _atm, "Alternate tuning and merging: every task from the current model, merge, repeat.",
        "RECIPE is a training recipe, such as assets/recipes/atm.yaml; joint training at the same number of samples "
        "stands beside it unless --beside says otherwise.",
    )  # fmt: skip
    _options(atm, "joint")
    train = verb("train", _train, "Train the tasks of a training recipe together, or an expert for each.")
    train.add_argument("kind", choices=_KINDS, help="joint: one model on all tasks; experts: one a task")
    _options(train, "")


def _options(parser: argparse.ArgumentParser, beside: str) -> None:
    option = parser.add_argument
    option("recipe", metavar="RECIPE", help="a training recipe (YAML or JSON)")
    option("--out", required=True, metavar="DIR", help="the run's folder; the model is written to DIR/KIND/model")
    option("--resume", action="store_true", help="go on with the run that is in DIR (or start it)")
    option("--overwrite", action="store_true", help="replace an earlier run in DIR")
    option("--beside", default=beside, metavar="A,B",
           help=f"also run joint, pcgrad, one_shot, alpha (default: {beside or 'nothing'}; '': nothing)")  # fmt: skip
    option("--start", metavar="RECIPE|SOURCE", help="start from a merge: its recipe's file, or a checkpoint")
    option("--tasks", metavar="A,B", help="only these tasks")
    option("--images", type=positive, metavar="N", help="at most so many items a task")
    option("--rounds", type=positive, metavar="K", help="rounds of the budget")
    option("--epochs", type=positive, metavar="E", help="epochs a round")
    option("--steps", type=positive, metavar="S", help="steps a round, instead of epochs")
    option("--seed", type=int, metavar="N", help="of the items, their order and adapters")
    option("--executor", default=None, choices=("inline", "local", "ray"),
           help="where a round's experts train (default: local processes if --workers is above 1)")  # fmt: skip
    option("--workers", type=positive, default=1, metavar="N", help="experts side by side (default: 1)")
    option("--threads", type=positive, metavar="N", help="threads of each worker (default: cores / workers)")
    option("--keep-rounds", action="store_true", help="keep every round's states, not only the last")
    option("--estimate", action="store_true", help="say what it would cost, and stop")
    option("--json", action="store_true", help="print the comparison as JSON")
    device(parser)


def _atm(arguments: Any) -> int:
    return _run(arguments, "atm")


def _train(arguments: Any) -> int:
    return _run(arguments, arguments.kind)


def _run(arguments: Any, kind: str) -> int:
    from ..executor import executor_of
    from ..runs.training import compare, estimate

    recipe = _recipe(arguments, kind)
    beside = [name.strip() for name in arguments.beside.split(",") if name.strip()]
    line = Line()
    if arguments.estimate or line.live:  # it takes a step, which nobody waits for where nobody looks
        cost = estimate(recipe, beside=beside, device=arguments.device, workers=arguments.workers)
        print(json.dumps(cost, indent=2) if arguments.estimate and arguments.json else cost_line(cost, beside))
    if arguments.estimate:
        return 0
    where = arguments.executor or ("local" if arguments.workers > 1 else "inline")
    with executor_of(where, arguments.workers, arguments.threads) as executor:
        found = compare(
            recipe, arguments.out, beside=beside, resume=arguments.resume, overwrite=arguments.overwrite,
            executor=executor, device=arguments.device, keep_rounds=arguments.keep_rounds, progress=line,
        )  # fmt: skip
    line.end()
    if arguments.json:
        print(json.dumps(found, indent=1))
        return 0
    print(curve(found["runs"][kind]))
    print()
    print(table(found["table"]))
    for record in found["runs"].values():
        for finding in record["findings"]:
            print(f"  {finding}")
    print(f"{arguments.out}: data used: {found['runs'][kind]['data_used']}")
    made = "experts/TASK" if kind == "experts" else "model"
    print(f"Next: python -m mergelab evaluate {arguments.out}/{kind}/{made} --suite {recipe.suite}")
    return 0


def _recipe(arguments: Any, kind: str) -> Any:
    """The recipe in the file with what the options say in its place."""
    from pathlib import Path

    from ..recipe import Recipe
    from ..training.recipe import TrainRecipe

    found = TrainRecipe.read(arguments.recipe)
    found = found if kind == found.train else found.of_kind(kind)
    changes: dict[str, Any] = {}
    if arguments.start is not None:
        is_file = Path(arguments.start).suffix.lower() in (".yaml", ".yml", ".json")
        changes["start"] = Recipe.read(arguments.start) if is_file else arguments.start
    if arguments.tasks:
        changes["tasks"] = tuple(name.strip() for name in arguments.tasks.split(",") if name.strip())
    for name in ("images", "seed"):
        if getattr(arguments, name) is not None:
            changes[name] = getattr(arguments, name)
    budget = {name: getattr(arguments, name) for name in ("rounds", "epochs", "steps")}
    given = {name: value for name, value in budget.items() if value is not None}
    if "steps" in given and "epochs" in given:
        raise MergeLabError("Give --epochs or --steps a round, not both.")
    if given:
        from dataclasses import replace

        other = {"steps": None} if "epochs" in given else {"epochs": 1} if "steps" in given else {}
        changes["budget"] = replace(found.budget, **{**other, **given})
    return found.replace(**changes)


def cost_line(cost: Mapping[str, Any], beside: list[str]) -> str:
    """What a run will cost, in one line."""
    more = f"; {', '.join(beside)} beside it included" if beside else ""
    sent = f", {cost['sent_bytes'] / 1e9:.1f} GB sent between tasks and server" if cost["sent_bytes"] else ""
    return (
        f"{cost['tasks']} tasks, {cost['rounds']} rounds, {cost['samples']} samples: about {cost['seconds'] / 60:.1f} "
        f"minutes, {cost['memory_bytes'] / 1e9:.1f} GB of memory{sent}{more}"
    )


def curve(record: Mapping[str, Any]) -> str:
    """Accuracy after every round, as aligned text in percent."""
    tasks = record["tasks"]
    rows = ["  ".join([f"{'round':>5}", f"{'epochs':>6}", f"{'samples':>8}", *(f"{t[:10]:>10}" for t in tasks),
                       f"{'mean':>6}"])]  # fmt: skip
    for point in record["points"]:
        shares = point["accuracy"]
        if not shares:
            continue
        cells = [f"{100 * shares[t]:>10.1f}" for t in tasks]
        total = sum(shares.values()) / len(shares)
        rows.append("  ".join([f"{point['round']:>5}", f"{point['epochs']:>6.2f}", f"{point['samples']:>8}", *cells,
                               f"{100 * total:>6.1f}"]))  # fmt: skip
    watch = record["watch"]
    return "\n".join([*rows, f"accuracy, %, on {watch.get('split', 'nothing')} pictures"])


def table(rows: list[dict[str, Any]]) -> str:
    """The comparison's table as aligned text."""
    width = max((len(row["name"]) for row in rows), default=10)
    out = [
        f"{'':<{width}}  {'mean, %':>7}  {'95 % interval':>15}  {'of expert, %':>12}  {'samples':>8}  {'seconds':>8}"
    ]
    for row in rows:
        between = "" if not row["interval"] else " to ".join(f"{100 * end:.1f}" for end in row["interval"])
        ratio = "" if row["normalised"] is None else f"{100 * row['normalised']:.1f}"
        seconds = row.get("training_seconds")
        cells = [f"{100 * row['mean']:>7.1f}", f"{between:>15}", f"{ratio:>12}", f"{row.get('samples') or '':>8}",
                 "" if seconds is None else f"{seconds:>8.0f}"]  # fmt: skip
        out.append("  ".join([f"{row['name']:<{width}}", *cells]).rstrip())
    return "\n".join(out)
