"""The verb twin: build, measure, try, look at and export routed models (Twin-Merging)."""

from __future__ import annotations

import json
from typing import Any

from ..errors import MergeLabError
from . import twin_compare
from .common import Line, Verb, device, evaluation_table, positive
from .twin_text import built_text, head_text, predicted_text, shown_text


def add(verb: Verb) -> None:
    """Declare the verbs."""
    twin = verb("twin", _help, "Routed models: a shared model, and what each expert has beyond it, mixed per input.")
    twin.set_defaults(parser=twin)
    verbs = twin.add_subparsers(title="what to do", metavar="ACTION")

    def action(name: str, run: Any, text: str) -> Any:
        sub = verbs.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    _build_arguments(
        action("build", _build, "Build a routed model from a recipe (an example: assets/recipes/twin.yaml).")
    )
    _evaluate_arguments(action("evaluate", _evaluate, "Measure a routed model on every task of a suite."))
    _predict_arguments(
        action("predict", _predict, "Show what a routed model makes of pictures, and which parts it mixes.")
    )

    twin_compare.add(
        action("compare", None, "One table: a routed model beside what it is compared with, at its rank and router.")
    )

    export = action("export", _export, "Merge once for fixed weights and write an ordinary checkpoint.")
    export.add_argument("folder", metavar="DIR", help="the routed model")
    export.add_argument(
        "--weights", required=True, metavar="W1,W2,…", help="one number a task, or `uniform`, or a task"
    )
    export.add_argument(
        "--out", required=True, metavar="OUT", help="the folder to write; it must not hold anything yet"
    )
    export.add_argument("--overwrite", action="store_true", help="replace OUT if it exists, once the new one is whole")

    show = action("show", _show, "Show what a routed model holds: bytes, ranks, kept energy, its router's accuracy.")
    show.add_argument("folder", metavar="DIR", help="the routed model")
    show.add_argument("--json", action="store_true", help="print it as JSON")


def _build_arguments(build: Any) -> None:
    from ..routing.presets import PRESETS

    build.add_argument("recipe", metavar="RECIPE.yaml", help="a recipe with the sections exclusive, router, inference")
    build.add_argument("--out", required=True, metavar="DIR", help="the folder to write; it must not hold anything yet")
    build.add_argument("--overwrite", action="store_true", help="replace DIR if it exists, once the new one is whole")
    build.add_argument("--preset", choices=tuple(PRESETS), help="instead of the recipe's")
    size = build.add_mutually_exclusive_group()
    size.add_argument("--rank", type=int, metavar="R", help="directions kept of each matrix")
    size.add_argument("--rank-ratio", type=float, metavar="X", help="… as a share of its smaller side")
    size.add_argument("--energy", type=float, metavar="X", help="… as many as hold this share of its squared values")
    build.add_argument("--seed", type=int, metavar="N", help="instead of the recipe's")
    build.add_argument("--suite", metavar="SUITE", help="where the router's items come from, instead of the recipe's")
    build.add_argument("--threads", type=positive, metavar="N", help="tensors worked on at a time (default: all cores)")
    device(build)
    build.add_argument("--json", action="store_true", help="print what was built as JSON")


def _evaluate_arguments(evaluate: Any) -> None:
    from ..routing.presets import HEADS, MODES

    evaluate.add_argument("folder", metavar="DIR", help="the routed model")
    evaluate.add_argument("--suite", default="starter", metavar="SUITE",
                          help="a zoo's name, or a folder with a suite or .npz tasks (default: starter)")  # fmt: skip
    evaluate.add_argument("--mode", choices=MODES, help="how it runs (default: its recipe's)")
    evaluate.add_argument(
        "--head", choices=HEADS, help="which head answers; oracle is told the task (default: its recipe's)"
    )
    evaluate.add_argument(
        "--weights", metavar="W1,W2,…", help="instead of the router's: numbers, `uniform` or `oracle`"
    )
    evaluate.add_argument("--split", default="test", choices=("test", "val", "train"), help="default: test")
    evaluate.add_argument("--tasks", metavar="A,B", help="only these tasks, by name")
    evaluate.add_argument(
        "--limit", type=positive, metavar="N", help="at most N items a task (a fixed, balanced subset)"
    )
    device(evaluate)
    evaluate.add_argument("--json", action="store_true", help="print the result as JSON")


def _predict_arguments(predict: Any) -> None:
    from ..routing.presets import MODES

    predict.add_argument("folder", metavar="DIR", help="the routed model")
    predict.add_argument("images", nargs="+", metavar="IMAGE", help="picture files")
    predict.add_argument(
        "--task", metavar="T", help="answer with this task's head (default: the router's first choice)"
    )
    predict.add_argument("--weights", metavar="W1,W2,…", help="one number a task, instead of the router's")
    predict.add_argument("--mode", choices=MODES, help="how it runs (default: its recipe's)")
    predict.add_argument("--top", type=positive, default=3, metavar="N", help="classes to show (default: 3)")
    device(predict)
    predict.add_argument("--json", action="store_true", help="print it as JSON")


def _help(arguments: Any) -> int:
    arguments.parser.print_help()
    return 0


def _build(arguments: Any) -> int:
    from ..checkpoints.whole import check_target
    from ..routing import TwinRecipe, build_routed, save
    from ..routing.build import base_files

    sizes = {name: getattr(arguments, name) for name in ("rank", "rank_ratio", "energy")}
    recipe = TwinRecipe.read(
        arguments.recipe, preset=arguments.preset, seed=arguments.seed,
        exclusive={name: value for name, value in sizes.items() if value is not None},
    )  # fmt: skip
    check_target(arguments.out, arguments.overwrite)
    line = Line()
    routed = build_routed(recipe, suite=arguments.suite, device=arguments.device, threads=arguments.threads,
                          progress=line)  # fmt: skip
    folder = save(routed, arguments.out, overwrite=arguments.overwrite, files=base_files(recipe))
    line.end()
    told = {"out": str(folder), **_about(routed)}
    print(json.dumps(told, indent=2) if arguments.json else built_text(told))
    return 0


def _evaluate(arguments: Any) -> int:
    from ..routing import evaluate_routed, load_routed

    routed = load_routed(arguments.folder)
    wanted = _inference(routed)
    given = arguments.weights
    weights = given if given in (None, "oracle", "uniform") else _weights(given, routed.names)
    line = Line()
    found = evaluate_routed(
        routed, arguments.suite, mode=arguments.mode or wanted.mode, head=arguments.head or wanted.head,
        weights=weights, grouping=_grouping(wanted), split=arguments.split, limit=arguments.limit,
        tasks=[name.strip() for name in arguments.tasks.split(",")] if arguments.tasks else None,
        device=arguments.device, progress=line,
    )  # fmt: skip
    line.end()
    result = found.to_dict()
    if arguments.json:
        print(json.dumps(result, indent=2))
        return 0
    marks = {name: "oracle head" for name, task in result["tasks"].items() if task["seen"] and found.head == "oracle"}
    marks.update({name: "unseen, class means, told the task" for name, t in result["tasks"].items() if not t["seen"]})
    print(evaluation_table(result, marks))
    print(head_text(result))
    return 0


def _predict(arguments: Any) -> int:
    import torch

    from ..routing import Runner, load_routed
    from ..routing.evaluate import likeliest
    from ..tasks import clean

    routed = load_routed(arguments.folder)
    if arguments.task is not None and arguments.task not in routed.heads:
        raise MergeLabError(f"There is no head for {arguments.task!r}; there are {', '.join(routed.heads) or 'none'}.")
    pictures = torch.cat([torch.from_numpy(clean(path)) for path in arguments.images])
    weights = None if arguments.weights is None else torch.tensor(_weights(arguments.weights, routed.names))
    wanted = _inference(routed)
    ran = Runner(routed, device=arguments.device).run(
        pictures, weights, arguments.mode or wanted.mode, grouping=_grouping(wanted)
    )
    guess = likeliest(ran.weights, ran.logits)
    if bool((guess < 0).any()) and not arguments.task:
        raise MergeLabError("All weights are 0, so no task's head is chosen; say which answers with --task.")
    policy = "head given by --task" if arguments.task else "head of the task that the router finds likeliest"
    if weights is not None and not arguments.task:
        policy = "head of the task with the largest weight"
    told = []
    for i, path in enumerate(arguments.images):
        task = arguments.task or routed.names[int(guess[i])]
        known = routed.settings.get("tasks", {}).get(task, {}).get("classes")
        top = []
        if task in routed.heads:
            shares = routed.heads[task].logits(ran.features[i : i + 1])[0].softmax(-1)
            best = shares.topk(min(arguments.top, len(shares)))
            top = [{"class": known[c] if known else str(c), "index": c, "probability": round(p, 5)}
                   for p, c in zip(best.values.tolist(), best.indices.tolist(), strict=True)]  # fmt: skip
        mixed = dict(zip(routed.names, (round(w, 5) for w in ran.weights[i].tolist()), strict=True))
        told.append({"image": path, "task": task, "policy": policy, "mode": ran.mode, "weights": mixed, "top": top})
    print(json.dumps(told, indent=2, ensure_ascii=False) if arguments.json else predicted_text(told))
    return 0


def _export(arguments: Any) -> int:
    from ..routing import export, load_routed

    routed = load_routed(arguments.folder)
    weights = _weights(arguments.weights, routed.names)
    folder = export(routed, weights, arguments.out, overwrite=arguments.overwrite)
    mixture = ", ".join(f"{name} {weight:g}" for name, weight in zip(routed.names, weights, strict=True))
    print(f"{folder}: an ordinary checkpoint of the mixture {mixture}. Every input gets the same one.")
    return 0


def _show(arguments: Any) -> int:
    from ..routing import load_routed

    told = _about(load_routed(arguments.folder))
    print(json.dumps(told, indent=2) if arguments.json else shown_text(told))
    return 0


def _about(routed: Any) -> dict[str, Any]:
    """What a routed model holds, as plain data."""
    from ..routing.parts import LowRank

    settings = routed.settings
    kept = settings.get("kept") if isinstance(settings.get("kept"), dict) else {}
    tasks = {}
    for task in routed.names:
        parts = routed.parts[task].values()
        ranks = [part.rank for part in parts if isinstance(part, LowRank)]
        tasks[task] = {
            "bytes": sum(part.nbytes for part in parts), "largest_rank": max(ranks, default=0), "factored": len(ranks),
            "whole": len(parts) - len(ranks), "kept": kept.get(task),
            "classes": routed.heads[task].classes if task in routed.heads else None,
        }  # fmt: skip
    routers = {}
    for name, router in (("router", routed.router), ("early_router", routed.early_router)):
        about = router.about() if router is not None else {}
        score = about.get("validation")
        if router is not None:
            routers[name] = {key: about.get(key) for key in ("kind", "features", "epoch", "counts", "warnings")}
            routers[name]["validation_accuracy"] = score.get("accuracy") if isinstance(score, dict) else None
    return {
        "tasks": tasks, "bytes": routed.bytes(), "routers": routers, "gate": routed.gate.to_dict(),
        "inference": _inference(routed).to_dict(), "data_used": settings.get("data_used"),
        "seconds": settings.get("seconds"), "hash": settings.get("hash"),
    }  # fmt: skip


def _inference(routed: Any) -> Any:
    """How the routed model's recipe says that it is run."""
    from ..routing import Inference, TwinRecipe

    recipe = routed.settings.get("recipe")
    return TwinRecipe.from_dict(recipe).inference if recipe else Inference()


def _grouping(inference: Any) -> Any:
    from ..routing import GroupSettings

    return GroupSettings(inference.groups_per_bin, inference.total_groups, inference.cluster_on)


def _weights(text: str, names: tuple[str, ...]) -> list[float]:
    """``0.5,0.5``, ``uniform``, or a task's name (that task alone)."""
    if text == "uniform":
        return [1 / len(names)] * len(names)
    if text in names:
        return [float(name == text) for name in names]
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if len(found) != len(names):
        raise MergeLabError(f"--weights {text[:60]!r} must be {len(names)} numbers with commas between them, in the "
                            f"order {', '.join(names)}; or `uniform`; or one of these names.")  # fmt: skip
    return found
