"""The verb theorem: is a task vector a multiple of the gradient, on your model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import MergeLabError
from .common import Line, Verb, aligned, device, positive

_COLUMNS = ("optimiser", "steps", "error", "cosine", "tasks' errors", "moved", "loss", "accuracy, %")


def add(verb: Verb) -> None:
    """Declare the verb."""
    theorem = verb(
        "theorem", _theorem, "Hold task vectors against gradients, in float64, by optimiser and number of steps.",
        "One full-batch step of gradient descent gives the negative gradient (theorem 3.1 of ATM); more steps, Adam, "
        "momentum, mini-batches and weight decay do not.",
    )  # fmt: skip
    option = theorem.add_argument
    option("--suite", default="starter", metavar="SUITE", help="where the tasks' pictures come from (default: starter)")
    option("--base", metavar="SOURCE", help="the model to start from (default: the base of the suite's zoo)")
    option("--tasks", metavar="A,B", help="only these tasks, by name")
    option("--images", type=positive, default=32, metavar="N", help="training pictures a task (default: 32)")
    option("--rate", type=float, default=0.01, metavar="X", help="of gd, sgd and momentum (default: 0.01)")
    option("--adam-rate", type=float, default=1e-5, metavar="X", help="of adam and adamw (default: 1e-5)")
    option("--weight-decay", type=float, default=0.1, metavar="X", help="of adamw (default: 0.1)")
    option("--steps", default="1,2,5,10", metavar="K,K", help="numbers of steps to look at (default: 1,2,5,10)")
    option("--optimisers", default="gd,sgd,momentum,adam,adamw", metavar="A,B", help="default: all five")
    option("--batch", type=positive, metavar="N", help="of sgd; the others take all (default: a quarter of a task's)")
    option("--watch", default="test", choices=("test", "val", "none"),
           help="the pictures that accuracy is measured on (default: test)")  # fmt: skip
    option("--limit", type=positive, default=100, metavar="N", help="of these, at most N a task (default: 100)")
    option("--seed", type=int, default=0, metavar="N", help="of the pictures and sgd's batches (default: 0)")
    option("--out", metavar="FILE", help="write what was found as JSON")
    option("--overwrite", action="store_true", help="replace FILE if it exists")
    device(theorem)
    option("--json", action="store_true", help="print it as JSON")


def _theorem(arguments: Any) -> int:
    from ..figures import describe_theorem
    from ..runs.training.theorem import theorem_lab, write_theorem
    from ..training.recipe import TrainRecipe, Watch

    if arguments.out and Path(arguments.out).expanduser().exists() and not arguments.overwrite:
        raise MergeLabError(f"{arguments.out} exists: choose another file, or allow replacing it with --overwrite.")
    recipe = TrainRecipe(
        "experts", arguments.base or _base(arguments.suite), arguments.suite, images=arguments.images,
        tasks=_names(arguments.tasks) if arguments.tasks else None, seed=arguments.seed,
        watch=Watch(arguments.watch, arguments.limit),
    )  # fmt: skip
    line = Line()
    found = theorem_lab(
        recipe, device=arguments.device, progress=line, rate=arguments.rate, adam_rate=arguments.adam_rate,
        steps=_steps(arguments.steps), optimisers=_names(arguments.optimisers), weight_decay=arguments.weight_decay,
        batch=arguments.batch,
    )  # fmt: skip
    line.end()
    if arguments.out:
        write_theorem(found, arguments.out, overwrite=arguments.overwrite)
    if arguments.json:
        print(json.dumps(found, indent=1))
        return 0
    print(course_table(found))
    print()
    print(joint_table(found))
    print()
    print(rounding_table(found))
    print()
    print(describe_theorem(found))
    if found["decay"]:
        print(decay_line(found["decay"]))
    print(f"{found['base_model']}, {found['parameters']:,} weights; {found['data_used']}; {found['seconds']:.0f} s")
    return 0


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _steps(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in _names(text))
    except ValueError:
        raise MergeLabError(f"--steps {text[:60]!r} is not a list of whole numbers, such as 1,2,5,10.") from None


def _base(suite: str) -> str:
    """The base of the zoo that a suite belongs to."""
    from ..tasks import load_suite
    from ..zoo import open_zoo

    found = load_suite(suite)
    if found.zoo is None:
        raise MergeLabError(f"The suite {suite} belongs to no zoo, so say what to start from: --base SOURCE.")
    return open_zoo(found.zoo).base


def course_table(found: Mapping[str, Any]) -> str:
    """Optimisers by steps: of the mean task vector, the range over tasks, and what merging gives."""
    base = found["base"]
    rows = [["(the base)", "0", "", "", "", "", *_reached(base)]]
    for row in found["rows"]:
        mean = row["mean"]
        rows.append([
            row["optimiser"], str(row["steps"]), f"{mean['error']:.2e}", f"{mean['cosine']:.4f}",
            _range(row["error"]), f"{row['moved']:.1e}", *_reached(row),
        ])  # fmt: skip
    rates = {row["optimiser"]: f"{row['rate']:g}" for row in found["rows"]}
    return "\n".join([
        aligned(_COLUMNS, rows), f"rates η: {', '.join(f'{name} {rate}' for name, rate in rates.items())}",
        "error of the mean task vector, relative to −kη times the mean gradient, and the cosine with that;",
        "moved: relative to the base's norm; loss (on the training pictures) and accuracy of the merge",
    ])  # fmt: skip


def _reached(row: Mapping[str, Any]) -> list[str]:
    loss, shares = row["loss"].values(), row["accuracy"]
    share = "–" if not shares else f"{100 * sum(shares.values()) / len(shares):.1f}"
    return [f"{sum(loss) / len(loss):.4f}", share]


def joint_table(found: Mapping[str, Any]) -> str:
    """How far joint gradient descent is from merging at the end, and from merging after every step."""
    rows = [[str(row["steps"]), f"{row['apart']:.2e}", f"{row['rounds']:.2e}"] for row in found["joint"]]
    head = ("steps", "merged once, at the end", "merged after every step (ATM)")
    return aligned(head, rows) + "\ndistance from joint gradient descent, as a share of the way that it went"


def rounding_table(found: Mapping[str, Any]) -> str:
    """The error of one step when it is taken in float32 and in float64, by rate."""
    rows = [[f"{row['rate']:g}", _range(row["float32"]), _range(row["float64"])] for row in found["rounding"]]
    return aligned(("rate", "float32", "float64"), rows) + "\nerror of one step of gradient descent, over tasks"


def _range(values: Mapping[str, float]) -> str:
    return f"{min(values.values()):.1e} to {max(values.values()):.1e}"


def decay_line(decay: Mapping[str, Any]) -> str:
    """What weight decay is within AdamW's first step."""
    shares = decay["share"].values()
    return (
        f"AdamW's weight decay is the same vector in every task's first step (to {decay['error']:.0e}), so the mean "
        f"keeps all of it: {min(shares):.2%} to {max(shares):.2%} of the tasks' vectors, {decay['mean']:.2%} of their "
        "mean."
    )
