"""The verb calibrate: fit a merged checkpoint's layers to its experts' features, block after block."""

from __future__ import annotations

import json
from typing import Any

from .common import Line, Verb, device, positive
from .surgery import experts_given


def add(verb: Verb) -> None:
    """Declare the verb."""
    calibrate = verb(
        "calibrate", _calibrate, "Fit a merged checkpoint's layers to its experts' features, block after block.",
        "FeatCal: closed-form, on unlabelled pictures; the result is a checkpoint like the merged one.",
    )  # fmt: skip
    option = calibrate.add_argument
    option("merged", metavar="MERGED", help="the merged checkpoint: a folder that `merge` wrote")
    option("--out", required=True, metavar="DIR", help="the folder to write; it must not hold anything yet")
    option("--overwrite", action="store_true", help="replace DIR if it exists, once the new one is whole")
    option("--suite", default="starter", metavar="SUITE", help="where the tasks' pictures come from (default: starter)")
    option("--examples", type=positive, default=256, metavar="N", help="pictures a task (default: 256)")
    option("--split", default="val", choices=("val", "test"),
           help="default: val; test is what results are measured on, and then marked transductive")  # fmt: skip
    option("--tasks", metavar="A,B", help="only these tasks, by name")
    option("--base", metavar="SOURCE", help="the base (default: the merge's own, then the suite's zoo's)")
    option("--expert", action="append", default=[], metavar="TASK=SOURCE",
           help="the expert of a task (default: the merge's own models, then the suite's zoo's)")  # fmt: skip
    option("--ridge", type=float, default=0.05, metavar="X", help="pull towards the anchor (default: 0.05)")
    option("--anchor", type=float, default=2.2, metavar="X",
           help="where: base + X times (merged - base) (default: 2.2)")  # fmt: skip
    option("--teacher", type=float, default=0.25, metavar="X",
           help="share of the expert's own features in what its layers are asked about (default: 0.25)")  # fmt: skip
    option("--seed", type=int, default=0, metavar="N", help="of the drawn pictures (default: 0)")
    device(calibrate)
    option("--json", action="store_true", help="print what was done as JSON")


def _calibrate(arguments: Any) -> int:
    from ..runs.calibrated import DriftSettings, calibrate

    line = Line()
    settings = DriftSettings(ridge=arguments.ridge, anchor=arguments.anchor, teacher=arguments.teacher)
    tasks = [name.strip() for name in arguments.tasks.split(",")] if arguments.tasks else None
    found = calibrate(
        arguments.merged, arguments.out, arguments.suite, base=arguments.base, experts=experts_given(arguments.expert),
        tasks=tasks, split=arguments.split, examples=arguments.examples, settings=settings, seed=arguments.seed,
        device=arguments.device, overwrite=arguments.overwrite, progress=line,
    )  # fmt: skip
    line.end()
    said = found.to_dict()
    if arguments.json:
        print(json.dumps(said, indent=2))
        return 0
    print(f"{found.folder}: {said['tensors']} tensors of {len(said['blocks'])} blocks, {said['seconds']} s")
    print(f"Data used: {found.data_used}")
    for path, why in said["skipped"].items():
        print(f"  left as it was: {path} ({why})")
    print(f"Next: python -m mergelab evaluate {found.folder} --suite {arguments.suite}")
    return 0
