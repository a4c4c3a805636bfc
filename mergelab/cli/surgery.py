"""The verb surgery: bring a merged checkpoint's features back to its experts', task by task."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import MergeLabError
from .common import Line, Verb, device, positive


def add(verb: Verb) -> None:
    """Declare the verb."""
    surgery = verb(
        "surgery", _surgery, "Correct a merged checkpoint's features towards its experts', task by task.",
        "Representation Surgery: fitted on unlabelled pictures; the result needs the task id at inference. "
        "Then: python -m mergelab evaluate MERGED --surgery FILE",
    )  # fmt: skip
    option = surgery.add_argument
    option("merged", metavar="MERGED", help="the merged checkpoint: a folder that `merge` wrote")
    option("--suite", default="starter", metavar="SUITE", help="where the tasks' pictures come from (default: starter)")
    option("--out", required=True, metavar="FILE", help="the file to write, such as surgery.safetensors")
    option("--overwrite", action="store_true", help="replace FILE if it exists, once the new one is whole")
    option("--examples", type=positive, default=256, metavar="N", help="pictures a task (default: 256)")
    option("--rank", type=positive, default=16, metavar="R", help="of each correction (default: 16)")
    option("--steps", type=positive, default=1000, metavar="N", help="steps a task (default: 1000)")
    option("--split", default="val", choices=("val", "test"),
           help="default: val; test is what results are measured on, and then marked transductive")  # fmt: skip
    option("--tasks", metavar="A,B", help="only these tasks, by name")
    option("--expert", action="append", default=[], metavar="TASK=SOURCE",
           help="the expert of a task (default: the merge's own models, then the suite's zoo's)")  # fmt: skip
    option("--seed", type=int, default=0, metavar="N", help="default: 0")
    device(surgery)
    surgery.add_argument("--json", action="store_true", help="print what was found as JSON, projections included")


def _surgery(arguments: Any) -> int:
    from ..runs.surgery import SurgerySettings, operate_on

    if Path(arguments.out).expanduser().exists() and not arguments.overwrite:
        raise MergeLabError(f"{arguments.out} exists: choose another file, or allow replacing it with --overwrite.")
    line = Line()
    settings = SurgerySettings(rank=arguments.rank, steps=arguments.steps, seed=arguments.seed)
    tasks = [name.strip() for name in arguments.tasks.split(",")] if arguments.tasks else None
    found = operate_on(
        arguments.merged, arguments.suite, experts=experts_given(arguments.expert), tasks=tasks, split=arguments.split,
        examples=arguments.examples, settings=settings, device=arguments.device, progress=line,
    )  # fmt: skip
    path = found.surgery.write(arguments.out, overwrite=arguments.overwrite)
    line.end()
    if arguments.json:
        said = {**found.surgery.header(), "out": str(path), "data_used": found.surgery.data_used,
                "transductive": found.surgery.transductive, "projections": found.projections}  # fmt: skip
        print(json.dumps(said, indent=2))
        return 0
    print(bias_table(found.surgery.bias))
    print(f"{path}: {found.surgery.data_used}; {found.surgery.seconds:.1f} s")
    print(f"Next: python -m mergelab evaluate {arguments.merged} --suite {arguments.suite} --surgery {arguments.out}")
    return 0


def bias_table(bias: Mapping[str, Mapping[str, float]]) -> str:
    """Representation bias by task before and after, on the fitted pictures and on others."""
    rows = [f"{'task':<14} {'bias before':>11} {'after':>7}   {'others before':>13} {'after':>7}"]
    for task, found in bias.items():
        row = f"{task:<14} {found['before']:>11.4f} {found['after']:>7.4f}"
        if "held_out" in found:
            row += f"   {found['held_out_before']:>13.4f} {found['held_out_after']:>7.4f}"
        rows.append(row)
    return "\n".join(rows)


def experts_given(given: list[str]) -> dict[str, str]:
    """``TASK=SOURCE`` arguments by task."""
    out = {}
    for text in given:
        task, sign, source = text.partition("=")
        if not (task and sign and source):
            raise MergeLabError(f"--expert {text!r} is not TASK=SOURCE; write it as mnist=zoo:starter/mnist.")
        out[task] = source
    return out
