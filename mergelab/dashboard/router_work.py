"""The heavy calls behind the Router tab, in terms of plain values. A *built* model is ``{"twin": recipe as plain data,
"selection", "hash", "label", "size", "shared": words, "summary", "seconds"}``; its tensors stay on the bench."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import MergeLabError
from ..recipe import Recipe
from . import views, work
from .lab import Lab

Options = dict[str, Any]
POLICIES = ("rank", "rank_ratio", "energy")


def twin_of(recipe: Recipe, options: Options) -> dict[str, Any]:
    """A routed recipe as plain data: ``recipe`` makes the shared model, ``options`` are the Build panel's values."""
    from ..routing.recipe import TwinRecipe

    size = int(options["rank"]) if options["policy"] == "rank" else float(options[options["policy"]])
    router = {"kind": options["router"], "temperature": float(options["temperature"])}
    if options.get("top_k"):
        router["top_k"] = int(options["top_k"])
    if options.get("threshold"):
        router["threshold"] = float(options["threshold"])
    data = {**recipe.to_dict(), "preset": options["preset"], "exclusive": {options["policy"]: size}, "router": router}
    return TwinRecipe.from_dict(data).to_dict()


def preset_options(name: str) -> Options:
    """What the Build panel shows when a preset is chosen, with its sentence under ``text``."""
    from ..routing.presets import PRESETS

    preset = PRESETS[name]
    policy = next((p for p in POLICIES if p in preset.exclusive), "rank_ratio")
    return {
        "preset": name, "policy": policy, "rank": 8, "rank_ratio": 0.1, "energy": 0.9, "router": "mlp",
        "temperature": 1.0, "top_k": 0, "threshold": 0.0, "head": preset.inference.get("head", "router_argmax"),
        **({policy: preset.exclusive[policy]} if policy in preset.exclusive else {}), "text": preset.text,
    }  # fmt: skip


def presets() -> list[str]:
    from ..routing.presets import PRESETS

    return list(PRESETS)


def size_words(twin: Mapping[str, Any]) -> str:
    """How much of each expert is kept, in words."""
    kept = twin["exclusive"]
    if kept.get("rank") is not None:
        return f"rank {kept['rank']}"
    if kept.get("rank_ratio") is not None:
        return f"{kept['rank_ratio']:.0%} of the rank"
    if kept.get("energy") is not None:
        return f"{kept['energy']:.0%} of the energy"
    return str(kept.get("kind", "everything"))


def build(
    lab: Lab, selection: Mapping[str, Any], recipe: Recipe, options: Options, shared: str, *, progress: Any, stop: Any
) -> dict[str, Any]:
    """:func:`make` from the Build panel's values; ``shared`` is the shared model in words."""
    twin = twin_of(recipe, options)
    return {**make(lab, selection, twin, progress=progress, stop=stop), "shared": shared}


def make(
    lab: Lab, selection: Mapping[str, Any], twin: dict[str, Any], *, progress: Any = None, stop: Any = None
) -> dict[str, Any]:
    """Build and describe; the model itself stays on the bench."""
    started = time.perf_counter()
    bench, routed = lab.routed(selection), parsed(twin)
    bench.build(routed, progress=progress, stop=stop)
    summary = bench.summary(routed)
    notes = summary.pop("router_notes", {})
    return {
        "twin": twin, "selection": dict(selection), "hash": summary["hash"], "size": size_words(twin),
        "label": f"Twin-Merging, {size_words(twin)}", "summary": summary, "seconds": time.perf_counter() - started,
        "notes": {k: v for k, v in notes.items() if isinstance(v, (str, int, float))},
    }  # fmt: skip


def read(text: str) -> Any:
    """A routed recipe that a program sent as YAML or JSON text."""
    from ..routing.recipe import TwinRecipe

    if not isinstance(text, str):
        raise MergeLabError("Give the recipe as YAML or JSON text.")
    return TwinRecipe.from_json(text) if text.lstrip().startswith("{") else TwinRecipe.from_yaml(text)


def parsed(twin: Mapping[str, Any]) -> Any:
    """The routed recipe of plain data."""
    from ..routing.recipe import TwinRecipe

    return TwinRecipe.from_dict(twin)


def measure(
    lab: Lab, built: Mapping[str, Any], head: str, mode: str, per_task: int | None, *,
    progress: Any = None, stop: Any = None,
) -> views.Result:  # fmt: skip
    """A result like any other, with the router's tables in its evaluation and the static merge beside it."""
    selection, twin = built["selection"], parsed(built["twin"])
    bench, weights = lab.open(selection), "uniform" if mode == "static" else None
    started = time.perf_counter()
    evaluation = lab.routed(selection).evaluate(
        twin, per_task=per_task, mode=mode, head=head, weights=weights, progress=progress, stop=stop
    )
    seconds = time.perf_counter() - started
    static = bench.evaluate(twin.shared, per_task=per_task, progress=progress, stop=stop).to_dict()
    base, experts = work.references(lab, selection, per_task, progress, stop)
    titles = lab.titles(selection)
    return {
        "id": f"{built['hash'][:12]}/{head}/{mode}/{per_task}", "label": f"{built['label']}, {_short(head)}",
        "method": "twin", "recipe": built["twin"], "hash": built["hash"], "static": static, "base": base,
        "experts": experts, "evaluation": {**evaluation, "weights": weights}, "titles": titles, "per_task": per_task,
        "tuned": False, "seconds": seconds,
    }  # fmt: skip


def _short(head: str) -> str:
    return {"oracle": "oracle head", "max_logit": "highest logit"}.get(head, "router’s head")


def look(
    lab: Lab, built: Mapping[str, Any], picture: Mapping[str, Any], head: str, hand: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Weights and class probabilities of a picture (see :func:`mergelab.dashboard.work.predict`)."""
    selection = built["selection"]
    bench, task, truth = lab.open(selection), picture["task"], None
    if picture.get("pixels") is not None:
        pixels = np.asarray(picture["pixels"], dtype=np.uint8)
    elif picture.get("index") is not None:
        pixels, truth = work.test_picture(bench, task, picture["index"])
    else:
        samples = bench.samples(task)
        _, pixels, truth = samples[picture.get("place", 0) % len(samples)]
    found = lab.routed(selection).predict(
        parsed(built["twin"]), pixels[None], head=head, task=task, weights=hand["weights"] if hand else None,
        normalised=bool(hand and hand["normalise"]),
    )  # fmt: skip
    return {**found, "truth": _said(lab, selection, task, truth, head), "from": task, "png": views.png(pixels)}


def _said(lab: Lab, selection: Mapping[str, Any], task: str, truth: str | None, head: str) -> str | None:
    """The truth as the figure calls it: with its task's title where classes of all tasks stand side by side."""
    return f"{lab.titles(selection).get(task, task)}: {truth}" if truth and head == "max_logit" else truth


def batch(lab: Lab, built: Mapping[str, Any], head: str, seed: int, per_bin: int) -> dict[str, Any]:
    found = lab.routed(built["selection"]).batch(parsed(built["twin"]), seed=seed, per_bin=per_bin, head=head)
    items = [{**{k: v for k, v in i.items() if k != "picture"}, "png": views.png(i["picture"])} for i in found["items"]]
    return {**found, "items": items}
