"""The command line: the dashboard's verbs for a terminal.

Exit status: 0 done; 1 a check says that the merge cannot run; 2 something was wrong, said in one sentence; 130 stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import __version__
from .cores import share_cores
from .errors import Cancelled, MergeLabError

_EPILOG = """\
a source is one of
  zoo:starter/base, zoo:starter/mnist   the base or an expert of a zoo that MergeLab knows
  PATH                                  a safetensors file, or a folder in the Hugging Face, OpenCLIP or PEFT layout
  hub:org/name[@revision]               a repository of the Hugging Face Hub

first steps
  python -m mergelab methods
  python -m mergelab check assets/recipes/ties.yaml
  python -m mergelab merge assets/recipes/ties.yaml --out merged
  python -m mergelab evaluate merged --suite starter
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    arguments = _parser().parse_args(argv)
    share_cores()
    try:
        return arguments.run(arguments)
    except Cancelled as error:
        print(f"mergelab: {error}", file=sys.stderr)
        return 130
    except MergeLabError as error:
        print(f"mergelab: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `mergelab methods | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("mergelab: stopped; nothing half-written was left.", file=sys.stderr)
        return 130
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        print(f"mergelab: {error.strerror or error}{where}.", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mergelab",
        description="Put fine-tuned checkpoints together and see what happened.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mergelab {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    def verb(name: str, run: Callable[[Any], int], text: str, more: str = "") -> argparse.ArgumentParser:
        sub = verbs.add_parser(
            name, help=text, description=f"{text} {more}".strip(), formatter_class=argparse.RawDescriptionHelpFormatter
        )
        sub.set_defaults(run=run)
        return sub

    merge = verb("merge", _merge, "Run a recipe and write the merged checkpoint.")
    merge.add_argument("recipe", metavar="RECIPE.yaml", help="the recipe, as YAML or JSON (examples in assets/recipes)")
    merge.add_argument("--out", required=True, metavar="DIR", help="the folder to write; it must not hold anything yet")
    merge.add_argument("--overwrite", action="store_true", help="replace DIR if it exists, once the new one is whole")
    _device(merge)
    merge.add_argument(
        "--threads", type=_positive, metavar="N", help="tensors worked on at a time (default: all cores)"
    )
    merge.add_argument(
        "--max-shard-size", default="5GB", metavar="SIZE", help="bytes per file, e.g. 500MB (default 5GB)"
    )
    merge.add_argument("--json", action="store_true", help="print what was written as JSON")

    check = verb("check", _check, "Say from headers alone whether a recipe can run, and what it costs.",
                 "Exit status 1 and a list of what to do when it cannot.")  # fmt: skip
    check.add_argument("recipe", metavar="RECIPE.yaml", help="the recipe, as YAML or JSON")
    check.add_argument("--out", metavar="DIR", help="where the result would go (its disk is checked; default: here)")
    check.add_argument("--json", action="store_true", help="print the findings as JSON")

    methods = verb("methods", _methods, "List the merging methods with their parameters.")
    methods.add_argument("name", nargs="?", help="one method: its parameters, ranges, defaults, formula and paper")
    form = methods.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the full declarations as JSON")
    form.add_argument("--markdown", action="store_true", help="print them as the table that the README shows")

    evaluate = verb("evaluate", _evaluate, "Measure a checkpoint on every task of a suite.")
    evaluate.add_argument("source", metavar="SOURCE", help="the checkpoint: a folder, zoo:… or hub:…")
    evaluate.add_argument("--suite", default="starter", metavar="SUITE",
                          help="a zoo's name, or a folder with a suite or .npz tasks (default: starter)")  # fmt: skip
    evaluate.add_argument("--split", default="test", choices=("test", "val", "train"), help="default: test")
    evaluate.add_argument("--tasks", metavar="A,B", help="only these tasks, by name")
    evaluate.add_argument(
        "--limit", type=_positive, metavar="N", help="at most N items a task (a fixed, balanced subset)"
    )
    _device(evaluate)
    evaluate.add_argument("--json", action="store_true", help="print the result as JSON")

    inspect = verb("inspect", _inspect, "Show what a checkpoint holds, without loading its weights.")
    inspect.add_argument("source", metavar="SOURCE", help="the checkpoint: a folder, zoo:… or hub:…")
    inspect.add_argument("--json", action="store_true", help="print it as JSON")

    search = verb("search", _search, "Find checkpoints on the Hugging Face Hub (the only verb that asks it unbidden).")
    search.add_argument("query", nargs="?", metavar="WORDS", help="words in the repository's name")
    search.add_argument("--base", metavar="org/name", help="only models tuned from this one")
    search.add_argument("--limit", type=_positive, default=20, metavar="N", help="at most N (default: 20)")
    search.add_argument("--json", action="store_true", help="print the list as JSON")

    zoo = verb("zoo", _zoo_list, "List the zoos, or build one (see `zoo build --help`).")
    zoos = zoo.add_subparsers(title="what to do", metavar="ACTION")
    zoos.add_parser("list", help="list the zoos that MergeLab knows").set_defaults(run=_zoo_list)
    _zoo_build_arguments(zoos)

    app = verb("app", _app, "Start the dashboard (the same as `python app.py`).")
    app.add_argument("--port", type=int, metavar="N", help="default: 7860, or GRADIO_SERVER_PORT")
    return parser


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
    build.add_argument("--epochs", type=_positive, metavar="N", help="passes over each task's images")
    build.add_argument("--images", type=_positive, metavar="N", help="at most N training images a task")
    build.add_argument("--rank", type=_positive, metavar="R", help="rank of the LoRA adapters")
    build.add_argument("--resolution", type=_positive, metavar="PX", help="side of the pictures that the model sees")
    build.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    build.add_argument("--overwrite", action="store_true", help="replace DIR if it exists, once the new one is whole")


def _device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="default: auto")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return value


def _bytes(text: str) -> int:
    """``500MB`` -> 500000000; decimal units, as the Hub counts."""
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "B": 1}
    for unit, factor in units.items():
        if text.upper().endswith(unit):
            try:
                value = int(float(text[: -len(unit)]) * factor)
            except ValueError:
                break
            if value > 0:
                return value
            break
    raise MergeLabError(f"--max-shard-size {text!r} is not a size; write it as 500MB or 5GB.")


class _Line:
    """Progress as one line on a terminal's standard error, and nothing where there is no terminal."""

    def __init__(self) -> None:
        self.shown = 0.0
        self.live = sys.stderr.isatty()

    def __call__(self, done: int, total: int, text: str) -> None:
        now = time.monotonic()
        if self.live and (now - self.shown > 0.1 or done == total):
            self.shown = now
            print(f"\r\x1b[2K{done}/{total}  {text[:100]}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.live and self.shown:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)


def _merge(arguments: Any) -> int:
    from .engine import merge_to_folder, plan_recipe
    from .recipe import Recipe

    shard_bytes = _bytes(arguments.max_shard_size)
    recipe = Recipe.read(arguments.recipe)
    line, started = _Line(), time.perf_counter()
    plan = plan_recipe(recipe)
    folder = merge_to_folder(
        plan,
        arguments.out,
        device=arguments.device,
        threads=arguments.threads,
        overwrite=arguments.overwrite,
        max_shard_bytes=shard_bytes,
        progress=line,
    )
    line.end()
    seconds = time.perf_counter() - started
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    written = {
        "out": str(folder), "method": recipe.merge_method, "models": len(recipe.models),
        "bytes": size, "seconds": round(seconds, 3), "recipe": recipe.hash,
    }  # fmt: skip
    if arguments.json:
        print(json.dumps(written, indent=2))
    else:
        print(f"{folder}: {recipe.merge_method} of {len(recipe.models)} models, {size / 1e6:.1f} MB, {seconds:.1f} s")
        print(f"Next: python -m mergelab evaluate {folder} --suite {recipe.suite or 'starter'}")
    return 0


def _check(arguments: Any) -> int:
    from .engine import preflight
    from .recipe import Recipe

    report = preflight(Recipe.read(arguments.recipe), out=arguments.out)
    if arguments.json:
        print(json.dumps(report.to_dict(), indent=2))
        return 0 if report.ok else 1
    signs = {"ok": "ok   ", "warn": "look ", "error": "STOP "}
    for finding in report.findings:
        print(f"{signs[finding.level]} {finding.text}")
        if finding.fix:
            print(f"      -> {finding.fix}")
    print("It can run." if report.ok else "It cannot run as it is: see the lines marked STOP.")
    return 0 if report.ok else 1


def _methods(arguments: Any) -> int:
    from . import methods

    chosen = [methods.get(arguments.name)] if arguments.name else list(methods.registry().values())
    described = [method.describe() for method in chosen]
    if arguments.json:
        print(json.dumps(described, indent=2, ensure_ascii=False))
        return 0
    if arguments.markdown:
        print(_methods_table(described))
        return 0
    if not arguments.name:
        width = max(len(item["name"]) for item in described)
        for item in described:
            print(f"{item['name']:{width}}  {item['summary']}")
        print("\n`python -m mergelab methods NAME` shows one with its parameters; --json shows everything.")
        return 0
    item = described[0]
    print(f"{item['title']} ({item['name']})\n{item['summary']}\n")
    print(f"formula  {item['formula']}\npaper    {item['paper']}\nbase     {item['base']}\ndata     {item['data']}")
    print(f"models   {item['models']['min']} to {item['models']['max'] or 'any number'}\n\nparameters")
    for parameter in item["parameters"]:
        of = " (one per model)" if parameter["per_model"] else ""
        limits = parameter["range"]
        print(f"  {parameter['name']}{of}: {parameter['type']}, default {parameter['default']}, range {limits}")
        print(f"      {parameter['help']}")
    return 0


def _methods_table(described: list[dict[str, Any]]) -> str:
    """The declarations as a Markdown table."""
    rows = [
        "| method | name | kind | base | models | data | parameters (default) | paper |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for item in described:
        most = item["models"]["max"]
        count = (
            f"{item['models']['min']}" if item["models"]["min"] == most else f"{item['models']['min']}–{most or '…'}"
        )
        parameters = ", ".join(f"`{p['name']}` ({str(p['default']).lower()})" for p in item["parameters"])
        cells = [
            item["title"],
            f"`{item['name']}`",
            item["kind"],
            item["base"],
            count,
            item["data"],
            parameters,
            item["paper"],
        ]
        rows.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(rows)


def _evaluate(arguments: Any) -> int:
    from .tasks import evaluate

    tasks = [name.strip() for name in arguments.tasks.split(",")] if arguments.tasks else None
    line = _Line()
    evaluation = evaluate(
        arguments.source, arguments.suite, split=arguments.split, limit=arguments.limit, tasks=tasks,
        device=arguments.device, progress=line,
    )  # fmt: skip
    line.end()
    result = evaluation.to_dict()
    print(json.dumps(result, indent=2) if arguments.json else _evaluation_table(result))
    return 0


def _evaluation_table(result: dict[str, Any]) -> str:
    """The contract of ``evaluate --json`` as aligned text, percent."""

    def percent(value: float | None) -> str:
        return "    –" if value is None else f"{100 * value:5.1f}"

    rows = [f"{'task':<14} {'items':>5}  {'acc. %':>6}  {'95 % interval':>15}  {'of expert %':>11}"]
    for name, task in result["tasks"].items():
        low, high = task["interval"]
        interval = f"{percent(low)} to {percent(high)}"
        mark = "" if task["seen"] else "  unseen"
        row = f"{name:<14} {task['n']:>5}  {percent(task['accuracy']):>6}  {interval:>15}"
        rows.append(f"{row}  {percent(task['normalised']):>11}{mark}")
    for group in ("seen", "unseen"):
        if result[group]["accuracy"] is not None:
            mean = result[group]
            row = f"{'mean ' + group:<14} {'':>5}  {percent(mean['accuracy']):>6}  {'':>15}"
            rows.append(f"{row}  {percent(mean['normalised']):>11}")
    rows.append(f"{result['source']} on {result['suite']}; data used: {result['data_used']}; {result['seconds']:.1f} s")
    return "\n".join(rows)


def _inspect(arguments: Any) -> int:
    from .checkpoints import load

    with load(arguments.source) as checkpoint:
        infos = list(checkpoint.infos.values())
        if arguments.json:
            tensors = [{"name": i.name, "dtype": i.dtype, "shape": list(i.shape), "bytes": i.nbytes, "origin": i.origin}
                       for i in infos]  # fmt: skip
            summary = {"source": checkpoint.source, "bytes": checkpoint.nbytes, "tied": dict(checkpoint.aliases)}
            print(json.dumps({**summary, "tensors": tensors}, indent=2))
            return 0
        for info in infos:
            print(f"{info.dtype:<5} {'x'.join(map(str, info.shape)) or 'scalar':<16} {info.name}  [{info.origin}]")
        print(f"{checkpoint.source}: {len(infos)} tensors, {checkpoint.nbytes / 1e6:.1f} MB")
    return 0


def _search(arguments: Any) -> int:
    from .checkpoints import hub

    if not (arguments.query or arguments.base):
        raise MergeLabError("Say what to look for: some words, or --base org/name.")
    found = hub.search(base=arguments.base, query=arguments.query, limit=arguments.limit)
    if arguments.json:
        kept = ("repo", "revision", "source", "base", "relation", "license", "dtype", "parameters", "bytes",
                "downloads", "likes", "gated", "updated")  # fmt: skip
        print(json.dumps([{key: getattr(model, key) for key in kept} for model in found], indent=2))
        return 0
    for model in found:
        size = f"{model.parameters / 1e6:,.1f} M" if model.parameters else "?"
        gated = "  gated" if model.gated else ""
        print(f"{model.source}\n    {size} parameters, {model.dtype or '?'}, licence {model.license or '?'}, "
              f"{model.downloads} downloads, {model.relation or 'model'} of {model.base or '?'}{gated}")  # fmt: skip
    if not found:
        print("Nothing with safetensors weights was found.")
    return 0


def _zoo_list(_arguments: Any) -> int:
    from .zoo import list_zoos

    for zoo in list_zoos():
        print(f"{zoo.name:<12} {zoo.title}\n{'':<12} base {zoo.base}; experts {', '.join(zoo.experts)}")
    return 0


def _zoo_build(arguments: Any) -> int:
    from . import zoo
    from .paths import assets

    line = _Line()
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


def _app(arguments: Any) -> int:
    if arguments.port:
        os.environ["GRADIO_SERVER_PORT"] = str(arguments.port)
    from .dashboard.settings import Settings

    settings = Settings.from_env()
    settings.prepare()  # before gradio is imported: it reads its environment then
    from .dashboard.app import build_app, launch

    launch(build_app(settings=settings), settings)
    return 0
