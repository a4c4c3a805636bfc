"""The verb stats: collect what Fisher merging, RegMean and MaTS know about each expert's task."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from ..errors import MergeLabError
from .common import Line, Verb, device, positive


def add(verb: Verb) -> None:
    """Declare the verb."""
    stats = verb(
        "stats", _stats, "Collect statistics of experts on a little of their own data (for fisher, regmean, mats).",
        "\n\nkinds: gram (inputs of linear layers; no labels), kfac (and gradients on their outputs), diag (squared\n"
        "gradients of every weight), block (full, small vectors).\n"
        "example: mergelab stats zoo:starter --kinds gram,kfac,diag --examples 256 --out statistics",
    )  # fmt: skip
    stats.add_argument(
        "source", metavar="SOURCE", help="a zoo (zoo:NAME or its folder: all experts), or one checkpoint"
    )
    stats.add_argument("--kinds", metavar="A,B", help="default: gram,kfac,diag; with --space adapter block,diag")
    stats.add_argument(
        "--space", default="weights", choices=("weights", "adapter"),
        help="of the weights, or of the vectors of (IA)³ adapters themselves (default: weights)",
    )  # fmt: skip
    stats.add_argument("--examples", type=positive, default=256, metavar="N", help="a task, at most (default: 256)")
    stats.add_argument("--split", default="val", choices=("val", "train", "test"), help="default: val")
    stats.add_argument("--order", default="balanced", choices=("balanced", "first"),
                       help="classes in turn, or the first of the split (default: balanced)")  # fmt: skip
    stats.add_argument("--fisher", default="empirical", choices=("empirical", "sampled", "exact"),
                       help="labels of gradients: given, drawn, or all of them (default: empirical)")  # fmt: skip
    stats.add_argument("--class-limit", type=positive, metavar="K",
                       help="the most classes for --fisher exact, one backward pass each (default: 64)")  # fmt: skip
    stats.add_argument("--conv", action="store_true", help="also Grams of convolutions (patch embeddings)")
    stats.add_argument(
        "--all-tensors", action="store_true",
        help="also of tensors in which all experts have the same values (a merge of them weighs nothing there)",
    )  # fmt: skip
    stats.add_argument("--tasks", metavar="A,B", help="only these tasks, by name")
    stats.add_argument("--task", metavar="T", help="the task of a single checkpoint")
    stats.add_argument("--suite", metavar="SUITE", help="where pictures and heads come from (default: the zoo's own)")
    stats.add_argument("--batch", type=positive, default=32, metavar="N", help="pictures at a time (default: 32)")
    stats.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the subset and of drawn labels (default: 0)"
    )
    stats.add_argument("--out", metavar="DIR", help="the folder to write, one file a task")
    stats.add_argument("--overwrite", action="store_true", help="replace DIR if it exists, once the new one is whole")
    stats.add_argument("--estimate", action="store_true", help="only say what it would cost")
    device(stats)
    stats.add_argument("--json", action="store_true", help="print what was done as JSON")


def _stats(arguments: Any) -> int:
    from ..calibration import collect_zoo, estimate_zoo

    if not arguments.out and not arguments.estimate:
        raise MergeLabError("Say where the statistics go: --out DIR (or --estimate for the cost alone).")
    suite, experts, tasks = _experts(arguments)
    options: dict[str, Any] = {
        name: getattr(arguments, name)
        for name in ("examples", "split", "order", "fisher", "conv", "batch", "seed", "device", "space")
    }
    kinds = arguments.kinds or ("block,diag" if arguments.space == "adapter" else "gram,kfac,diag")
    options["changed_only"] = not arguments.all_tensors
    options["kinds"] = [kind.strip() for kind in kinds.split(",") if kind.strip()]
    if arguments.class_limit:
        options["class_limit"] = arguments.class_limit
    if arguments.estimate:
        return _cost(estimate_zoo(suite, experts, tasks=tasks, **options), arguments.json)
    line, told = Line(), _Told(sys.stderr if arguments.json else sys.stdout)
    folder = collect_zoo(
        suite, experts, arguments.out, tasks=tasks, overwrite=arguments.overwrite, progress=line,
        each=lambda statistics, path: told(statistics, path, line), **options,
    )  # fmt: skip
    line.end()
    result = {"out": str(folder), "suite": suite.name, "seconds": round(told.total, 1), "tasks": told.tasks}
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        size = sum(task["bytes"] for task in told.tasks.values())
        print(f"{folder}: statistics of {len(told.tasks)} tasks, {size / 1e6:.0f} MB, {told.total:.0f} s")
    return 0


def _experts(arguments: Any) -> tuple[Any, dict[str, str], list[str] | None]:
    """The suite, the experts by task, and the tasks that were asked for."""
    from ..tasks import load_suite
    from ..zoo import open_zoo

    tasks = [name.strip() for name in arguments.tasks.split(",")] if arguments.tasks else None
    text = arguments.source
    whole = (Path(text).expanduser() / "zoo.json").is_file() or (text.startswith("zoo:") and "/" not in text)
    if whole:
        if arguments.task:
            raise MergeLabError(f"{text} is a zoo with an expert for each task: choose with --tasks, not --task.")
        zoo = open_zoo(text)
        return load_suite(arguments.suite or zoo.folder), dict(zoo.experts), tasks
    zoo_name = text.removeprefix("zoo:").split("/")[0] if text.startswith("zoo:") else None
    name = arguments.task or (text.rpartition("/")[2] if zoo_name else None)
    if name is None or (arguments.suite is None and zoo_name is None):
        raise MergeLabError(f"{text} is one checkpoint: say on which task, with --suite SUITE --task T.")
    suite = load_suite(arguments.suite or zoo_name or "")
    others = dict(open_zoo(zoo_name).experts) if zoo_name else {}  # they say which tensors experts differ in
    return suite, {**others, suite[name].name: text}, [name]


class _Told:
    """A line for each task that is done, and what it was."""

    def __init__(self, out: Any) -> None:
        self.out = out
        self.tasks: dict[str, dict[str, Any]] = {}
        self.started = self.last = time.monotonic()

    @property
    def total(self) -> float:
        return self.last - self.started

    def __call__(self, statistics: Any, path: Path, line: Line) -> None:
        now = time.monotonic()
        took, self.last = now - self.last, now
        size = path.stat().st_size
        self.tasks[statistics.task] = {
            "examples": statistics.examples, "tensors": len(statistics), "kinds": list(statistics.kinds),
            "fisher": statistics.fisher, "split": statistics.split, "skipped": len(statistics.skipped), "bytes": size,
            "seconds": round(took, 2), "weights_hash": statistics.weights_hash,
        }  # fmt: skip
        line.end()
        print(f"{statistics.task:<14} {statistics.examples:>5} examples  {len(statistics):>4} tensors  "
              f"{size / 1e6:>7.1f} MB  {took:>6.1f} s", file=self.out, flush=True)  # fmt: skip


def _cost(found: dict[str, Any], as_json: bool) -> int:
    if as_json:
        print(json.dumps({task: one.to_dict() for task, one in found.items()}, indent=2))
        return 0
    for task, one in found.items():
        print(f"{task:<14} {one.examples:>5} examples  {one.tensors:>4} tensors  {one.nbytes / 1e6:>7.1f} MB  about "
              f"{one.seconds:>6.1f} s (from {one.timed} examples timed here)")  # fmt: skip
    size, seconds = sum(one.nbytes for one in found.values()), sum(one.seconds for one in found.values())
    print(f"{len(found)} tasks: {size / 1e6:.0f} MB on disk, about {seconds:.0f} s. Nothing was collected.")
    return 0
