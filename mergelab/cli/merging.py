"""The verbs around a recipe: merge, check, methods."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import Line, Verb, device, positive, size_of

if TYPE_CHECKING:
    from ..recipe import Recipe


def add(verb: Verb) -> None:
    """Declare the verbs."""
    merge = verb("merge", _merge, "Run a recipe and write the merged checkpoint.")
    merge.add_argument("recipe", metavar="RECIPE.yaml", help="the recipe, as YAML or JSON (examples in assets/recipes)")
    merge.add_argument("--out", required=True, metavar="DIR", help="the folder to write; it must not hold anything yet")
    merge.add_argument("--overwrite", action="store_true", help="replace DIR if it exists, once the new one is whole")
    merge.add_argument("--stats", metavar="DIR", help="the folder of statistics, instead of the recipe's own")
    device(merge)
    merge.add_argument("--threads", type=positive, metavar="N", help="tensors worked on at a time (default: all cores)")
    merge.add_argument(
        "--max-shard-size", default="5GB", metavar="SIZE", help="bytes per file, e.g. 500MB (default 5GB)"
    )
    merge.add_argument("--json", action="store_true", help="print what was written as JSON")

    check = verb("check", _check, "Say from headers alone whether a recipe can run, and what it costs.",
                 "Exit status 1 and a list of what to do when it cannot.")  # fmt: skip
    check.add_argument("recipe", metavar="RECIPE.yaml", help="the recipe, as YAML or JSON")
    check.add_argument("--stats", metavar="DIR", help="the folder of statistics, instead of the recipe's own")
    check.add_argument("--out", metavar="DIR", help="where the result would go (its disk is checked; default: here)")
    check.add_argument("--json", action="store_true", help="print the findings as JSON")

    methods = verb("methods", _methods, "List the merging methods with their parameters.")
    methods.add_argument("name", nargs="?", help="one method: its parameters, ranges, defaults, formula and paper")
    form = methods.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the full declarations as JSON")
    form.add_argument("--markdown", action="store_true", help="print them as the table that the README shows")


def _merge(arguments: Any) -> int:
    from ..engine import merge_to_folder, plan_recipe
    from ..methods import get

    shard_bytes = size_of(arguments.max_shard_size)
    recipe = _recipe(arguments)
    line, started = Line(), time.perf_counter()
    learned = data = None
    if get(recipe.merge_method).learns:
        from ..checkpoints.whole import check_target
        from ..runs import trained

        check_target(arguments.out, arguments.overwrite)
        learned = trained.prepare(recipe, device=arguments.device, progress=line)
        plan = trained.planned(recipe, learned)
        data = learned.data_used
    elif get(recipe.merge_method).collects:
        from ..checkpoints.whole import check_target
        from ..runs import collected

        check_target(arguments.out, arguments.overwrite)
        plan = collected.prepare(recipe, device=arguments.device, progress=line)
        data = collected.said(plan)
    else:
        plan = plan_recipe(recipe)
    for warning in plan.warnings:
        print(f"mergelab: {warning}", file=sys.stderr)
    folder = merge_to_folder(
        plan,
        arguments.out,
        extra=None if learned is None else trained.learned_files(learned),
        data=data,
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
    solved = _solved(folder)
    if solved:
        written["solve"] = solved
    if learned is not None:
        written["learned"] = trained.summary(learned)
    if arguments.json:
        print(json.dumps(written, indent=2))
    else:
        print(f"{folder}: {recipe.merge_method} of {len(recipe.models)} models, {size / 1e6:.1f} MB, {seconds:.1f} s")
        for text in (*_solve_lines(solved), *(() if learned is None else trained.lines(learned))):
            print(text)
        print(f"Next: python -m mergelab evaluate {folder} --suite {recipe.suite or 'starter'}")
    return 0


def _recipe(arguments: Any) -> Recipe:
    """The recipe, with the folder of statistics that was given beside it."""
    from ..recipe import Recipe

    recipe = Recipe.read(arguments.recipe)
    return recipe.replace(statistics=arguments.stats) if arguments.stats else recipe


def _solved(folder: Path) -> dict[str, Any]:
    """The summary of what a matched method's solver did, where there was one."""
    from ..engine.solve_log import SOLVE_FILE

    path = folder / SOLVE_FILE
    return json.loads(path.read_text(encoding="utf-8"))["summary"] if path.is_file() else {}


def _solve_lines(solved: dict[str, Any]) -> list[str]:
    """How many tensors were merged by what, and which were left and why (the first few of each reason)."""
    if not solved:
        return []
    lines = ["Tensors: " + ", ".join(f"{count} by {by}" for by, count in solved["by"].items())]
    for why, names in solved["left"].items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        lines.append(f"  {len(names)} {why} ({', '.join(names[:3])}{more})")
    nothing = solved["stopped"].get("no information", 0)
    if nothing:
        lines.append(f"  {nothing} no information: every task's statistics are 0 there")
    if list(solved["by"]) == ["experts"]:
        lines.append("All models have the same weights, so the result is that model.")
    return lines + [f"  look at {name}: {text}" for name, text in list(solved["warnings"].items())[:5]]


def _check(arguments: Any) -> int:
    from ..engine import preflight

    report = preflight(_recipe(arguments), out=arguments.out)
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
    from .. import methods

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
    needs = []
    if item["statistics"]:
        needs.append(f"statistics ({', '.join(item['statistics'])}; see `python -m mergelab stats --help`)")
    if item["learns"]:
        needs.append("coefficients, learned when it is merged")
    if needs:
        print(f"needs    {', '.join(needs)}")
    if item["init"]:
        print("init     any merge of the same models: a method's name, base or average (default)")
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
