"""The verb zoo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import MergeLabError
from .common import Line, Verb, positive


def add(verb: Verb) -> None:
    """Declare the verbs."""
    zoo = verb("zoo", _zoo_list, "List the zoos, or build one (see `zoo build --help`).")
    zoos = zoo.add_subparsers(title="what to do", metavar="ACTION")
    zoos.add_parser("list", help="list the zoos that MergeLab knows").set_defaults(run=_zoo_list)
    _zoo_build_arguments(zoos)


def _zoo_build_arguments(zoos: Any) -> None:
    build = zoos.add_parser(
        "build",
        help="build a zoo: the starter from packages, or one from a folder of .npz tasks",
        description="Build a zoo: `zoo build starter`, or `zoo build FOLDER --base starter --tune lora --out DIR`.",
    )
    build.set_defaults(run=_zoo_build)
    build.add_argument("tasks", metavar="starter|FOLDER", help="`starter`, or a folder of .npz tasks")
    build.add_argument("--out", metavar="DIR", help="where to write (default for starter: assets/zoo/starter)")
    build.add_argument("--base", default="starter", metavar="SOURCE", help="the base: a zoo's name or any source")
    build.add_argument("--tune", default="lora", choices=("full", "lora", "ia3"), help="how experts are tuned")
    build.add_argument("--epochs", type=positive, metavar="N", help="passes over each task's images")
    build.add_argument("--images", type=positive, metavar="N", help="at most N training images a task")
    build.add_argument("--rank", type=positive, metavar="R", help="rank of the LoRA adapters")
    build.add_argument("--resolution", type=positive, metavar="PX", help="side of the pictures that the model sees")
    build.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    build.add_argument("--overwrite", action="store_true", help="replace DIR if it exists, once the new one is whole")


def _zoo_list(_arguments: Any) -> int:
    from ..zoo import list_zoos

    for zoo in list_zoos():
        print(f"{zoo.name:<12} {zoo.title}\n{'':<12} base {zoo.base}; experts {', '.join(zoo.experts)}")
    return 0


def _zoo_build(arguments: Any) -> int:
    from .. import zoo
    from ..paths import assets

    line = Line()
    if arguments.tasks == "starter":
        out = Path(arguments.out) if arguments.out else assets() / "zoo" / "starter"
        folder = zoo.build_starter(out, seed=arguments.seed, overwrite=arguments.overwrite, progress=line)
    else:
        if not arguments.out:
            raise MergeLabError("Say where the zoo goes: --out DIR.")
        options = {name: getattr(arguments, name) for name in ("epochs", "images", "rank", "resolution")}
        folder = zoo.build_zoo(
            arguments.tasks, arguments.base, tune=arguments.tune, out=arguments.out, seed=arguments.seed,
            overwrite=arguments.overwrite, progress=line, **{k: v for k, v in options.items() if v is not None},
        )  # fmt: skip
    line.end()
    print(f"{folder}: built. Its card is {Path(folder) / 'README.md'}")
    return 0
