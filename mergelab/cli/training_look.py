"""The verb look: what training runs did in weight space, from the folder of a run or of a comparison."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import MergeLabError
from .common import Line, Verb, aligned, device, positive

Row = Mapping[str, Any]


def add(verb: Verb) -> None:
    """Declare the verb."""
    look = verb(
        "look", _look, "Look at training runs: epochs' shares, cosines, the loss between models, models on paper.",
        "DIR is what atm or train wrote; the rounds' models are there if it ran with --keep-rounds. Parts: shares "
        "(of the first epoch, in experts of --beside one_shot), orthogonality, landscape, barriers, projection.",
    )  # fmt: skip
    option = look.add_argument
    option("folder", metavar="DIR", help="the folder of a run or of a comparison")
    option("--what", metavar="A,B", help="only these parts (default: all that DIR has enough for)")
    option("--split", default="held", choices=("held", "val", "test"),
           help="the pictures that losses are measured on (default: held validation pictures)")  # fmt: skip
    option("--limit", type=positive, default=40, metavar="N", help="of these, at most N a task (default: 40)")
    option("--steps", type=positive, default=9, metavar="N",
           help="places on a line, and along each axis of the landscape: N² evaluations (default: 9)")  # fmt: skip
    option("--control", action="store_true",
           help="first tune an expert a task for one round from the joint model, into DIR/control")  # fmt: skip
    option("--out", metavar="FILE", help="write what was found as JSON")
    option("--overwrite", action="store_true", help="replace FILE if it exists")
    device(look)
    option("--json", action="store_true", help="print it as JSON")


def _look(arguments: Any) -> int:
    from ..runs.training.controls import train_control
    from ..runs.training.look import look, write_look

    if arguments.out and Path(arguments.out).expanduser().exists() and not arguments.overwrite:
        raise MergeLabError(f"{arguments.out} exists: choose another file, or allow replacing it with --overwrite.")
    line = Line()
    if arguments.control:
        train_control(arguments.folder, device=arguments.device, progress=line)
        line.end()
    what = [name.strip() for name in arguments.what.split(",") if name.strip()] if arguments.what else None
    found = look(
        arguments.folder, what=what, split=arguments.split, limit=arguments.limit, steps=arguments.steps,
        device=arguments.device, told=lambda cost: print(cost_line(cost), file=sys.stderr), progress=line,
    )  # fmt: skip
    line.end()
    if arguments.out:
        write_look(found, arguments.out, overwrite=arguments.overwrite)
    if arguments.json:
        print(json.dumps(found, indent=1))
        return 0
    for name, text in TEXTS.items():
        if name in found:
            print(text(found))
            print()
    for name, why in found["left_out"].items():
        print(f"  left out, {name}: {why}")
    counted = sorted(set(found["items"].values()))
    many = " to ".join(str(count) for count in dict.fromkeys((counted[0], counted[-1]))) if counted else ""
    where = f"losses on {many} {found['split']} pictures a task; " if counted else ""
    print(f"{arguments.folder}: {where}{found['seconds']:.0f} s")
    return 0


def cost_line(cost: Mapping[str, Mapping[str, int]]) -> str:
    """What will be measured, in one line."""
    if not cost:
        return "Nothing needs to be measured."
    parts = [f"{name} {part['evaluations']} evaluations of {part['pictures']} pictures" for name, part in cost.items()]
    return "To measure: " + "; ".join(parts) + " in all."


# ---- tables ----------------------------------------------------------------------------------------------------------


def shares_table(found: Row) -> str:
    """The first epoch's share beside an even split, by task."""
    from ..runs.training.controls import REFERENCE

    rows = []
    for task, one in found["shares"].items():
        five = " ".join(_number(share, "{:.2f}") for share in one["first_five"])
        rows.append([task, str(len(one["epochs"])), f"{one['even']:.2f}", _number(one["norm"], "{:.2f}"),
                     _number(one["moved"], "{:.2f}"), five])  # fmt: skip
    head = ("first epoch's share", "epochs", "even split", "of gradient norms", "of distances", "norms, first five")
    told = ", ".join(f"{name} {share:.2f} of {epochs}" for name, (share, epochs) in REFERENCE.items())
    return (
        f"{aligned(head, rows)}\nAbove the even split the first epoch is larger than the average one; only above 0.50 "
        f"is it larger than all others together.\nATM's authors, ViT-B/16, share and epochs: {told}"
    )


def orthogonality_table(found: Row) -> str:
    """Mean |cosine| of task vectors with their norms by run and round, and the drift."""
    rows = [[found["runs"][row["run"]]["title"], str(row["round"]), _number(row["epochs"], "{:g}"),
             _number(row["mean_abs"], "{:.3f}"), f"{row['norm']:.3g}"]
            for row in found["orthogonality"]["rows"]]  # fmt: skip
    out = [aligned(("task vectors of", "round", "epochs", "mean |cos|", "mean norm"), rows)]
    for name, way in found["orthogonality"]["drift"].items():
        cells = []
        for row in way:
            known = [value for value in row["to_drift"].values() if value is not None]
            given = row["contributed"]
            cells.append([
                str(row["round"]), f"{row['step']:.3g}", _number(row["to_previous"], "{:.3f}"),
                f"{row['from_start']:.3g}", _number(sum(known) / len(known) if known else None, "{:.3f}"),
                _number(given["mean_abs"], "{:.3f}"), f"{sum(given['norms'].values()) / len(given['norms']):.3g}",
            ])  # fmt: skip
        head = (f"{found['runs'][name]['title']}, round", "step", "cos to step before", "from start",
                "mean cos of tasks to drift", "mean |cos|, summed", "mean norm, summed")  # fmt: skip
        out.append(aligned(head, cells) + "\nsummed: what each task has contributed in all rounds so far")
    return "\n\n".join(out)


def landscape_table(found: Row) -> str:
    """The marked models, the paths, and the range of the grid."""
    land = found["landscape"]
    rows = [[row["title"], _at(row["x"]), _at(row["y"]), f"{row['off']:.2g}", f"{row['loss']:.3f}",
             f"{100 * row['accuracy']:.1f}"] for row in land["points"]]  # fmt: skip
    out = [aligned(("on the plane", "x", "y", "off it", "mean loss", "accuracy, %"), rows)]
    for name, way in land["paths"].items():
        far = max(off for _, _, off in way)
        out.append(f"{name}: {len(way) - 1} rounds to ({_at(way[-1][0])}, {_at(way[-1][1])}), at most {far:.2g} off it")
    low, x, y = min((value, x, y) for y, row in zip(land["ys"], land["loss"], strict=True)
                    for x, value in zip(land["xs"], row, strict=True))  # fmt: skip
    high = max(value for row in land["loss"] for value in row)
    size = f"{len(land['xs'])} × {len(land['ys'])}"
    out.append(f"grid of {size}: mean loss from {low:.3f} at ({_at(x)}, {_at(y)}) to {high:.3f}")
    return "\n".join(out)


def barriers_table(found: Row) -> str:
    """The barrier of every line, and the task with the highest."""
    rows = []
    for row in found["barriers"]:
        task = max(row["barriers"], key=lambda name: row["barriers"][name])
        loss = row["curves"]["mean"]
        rows.append([" – ".join(row["ends"]), str(len(row["barriers"])), f"{loss[0]:.3f}", f"{loss[-1]:.3f}",
                     f"{row['barrier']:.3f}", f"{row['barriers'][task]:.3f} {task}"])  # fmt: skip
    return aligned(("line", "tasks", "mean loss", "to", "barrier", "highest of a task"), rows)


def projection_table(found: Row) -> str:
    """Coordinates of the models in their two principal directions."""
    flat = found["projection"]
    rows = [[name, flat["groups"][name], _at(x), _at(y)]
            for name, (x, y) in zip(flat["names"], flat["coordinates"], strict=True)]  # fmt: skip
    first, second = flat["explained"]
    return aligned(("model", "group", f"first ({first:.0%})", f"second ({second:.0%})"), rows)


def _at(value: float) -> str:
    """A coordinate; rounding is nothing."""
    return "0" if abs(value) < 1e-9 else f"{value:.3g}"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


TEXTS = {"shares": shares_table, "orthogonality": orthogonality_table, "landscape": landscape_table,
         "barriers": barriers_table, "projection": projection_table}  # fmt: skip

__all__ = ["add", "cost_line"]
