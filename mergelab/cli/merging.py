"""The verbs around a recipe: merge, check, methods."""

from __future__ import annotations

import json
import time
from typing import Any

from .common import Line, Verb, device, positive, size_of


def add(verb: Verb) -> None:
    """Declare the verbs."""
    merge = verb("merge", _merge, "Run a recipe and write the merged checkpoint.")
    merge.add_argument("recipe", metavar="RECIPE.yaml", help="the recipe, as YAML or JSON (examples in assets/recipes)")
    merge.add_argument("--out", required=True, metavar="DIR", help="the folder to write; it must not hold anything yet")
    merge.add_argument("--overwrite", action="store_true", help="replace DIR if it exists, once the new one is whole")
    device(merge)
    merge.add_argument("--threads", type=positive, metavar="N", help="tensors worked on at a time (default: all cores)")
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


def _merge(arguments: Any) -> int:
    from ..engine import merge_to_folder, plan_recipe
    from ..recipe import Recipe

    shard_bytes = size_of(arguments.max_shard_size)
    recipe = Recipe.read(arguments.recipe)
    line, started = Line(), time.perf_counter()
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
    from ..engine import preflight
    from ..recipe import Recipe

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
