"""The verbs that look at checkpoints: evaluate, inspect, search."""

from __future__ import annotations

import json
from typing import Any

from ..errors import MergeLabError
from .common import Line, Verb, device, evaluation_table, positive


def add(verb: Verb) -> None:
    """Declare the verbs."""
    evaluate = verb("evaluate", _evaluate, "Measure a checkpoint on every task of a suite.")
    evaluate.add_argument("source", metavar="SOURCE", help="the checkpoint: a folder, zoo:… or hub:…")
    evaluate.add_argument("--suite", default="starter", metavar="SUITE",
                          help="a zoo's name, or a folder with a suite or .npz tasks (default: starter)")  # fmt: skip
    evaluate.add_argument("--split", default="test", choices=("test", "val", "train"), help="default: test")
    evaluate.add_argument("--tasks", metavar="A,B", help="only these tasks, by name")
    evaluate.add_argument(
        "--limit", type=positive, metavar="N", help="at most N items a task (a fixed, balanced subset)"
    )
    evaluate.add_argument("--surgery", metavar="FILE", help="with the corrections that `surgery` wrote; then the task "
                          "id is needed at inference")  # fmt: skip
    device(evaluate)
    evaluate.add_argument("--json", action="store_true", help="print the result as JSON")

    inspect = verb("inspect", _inspect, "Show what a checkpoint holds, without loading its weights.")
    inspect.add_argument("source", metavar="SOURCE", help="the checkpoint: a folder, zoo:… or hub:…")
    inspect.add_argument("--json", action="store_true", help="print it as JSON")

    search = verb("search", _search, "Find checkpoints on the Hugging Face Hub (the only verb that asks it unbidden).")
    search.add_argument("query", nargs="?", metavar="WORDS", help="words in the repository's name")
    search.add_argument("--base", metavar="org/name", help="only models tuned from this one")
    search.add_argument("--limit", type=positive, default=20, metavar="N", help="at most N (default: 20)")
    search.add_argument("--json", action="store_true", help="print the list as JSON")


def _evaluate(arguments: Any) -> int:
    from ..tasks import evaluate

    tasks = [name.strip() for name in arguments.tasks.split(",")] if arguments.tasks else None
    line = Line()
    options = {"split": arguments.split, "limit": arguments.limit, "tasks": tasks, "device": arguments.device}
    if arguments.surgery:
        from ..runs.surgery import evaluate_with_surgery

        evaluation = evaluate_with_surgery(
            arguments.source, arguments.surgery, arguments.suite, progress=line, **options
        )
    else:
        evaluation = evaluate(arguments.source, arguments.suite, progress=line, **options)
    line.end()
    result = evaluation.to_dict()
    print(json.dumps(result, indent=2) if arguments.json else evaluation_table(result))
    return 0


def _inspect(arguments: Any) -> int:
    from ..checkpoints import load

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
    from ..checkpoints import hub

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
