"""The heavy calls behind the page, in terms of plain values: measure a recipe, predict a picture."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import Cancelled, MergeLabError
from ..recipe import Recipe
from . import views, zerogpu
from .lab import Lab

#: For a GPU that is borrowed in another process: what is sent there must be plain values.
_LAB: Lab | None = None


def use(lab: Lab) -> None:
    """Make ``lab`` known to work that runs in a forked process."""
    global _LAB  # noqa: PLW0603
    _LAB = lab


@zerogpu.gpu
def _evaluate_elsewhere(selection: dict[str, Any], recipe: dict[str, Any], per_task: int | None) -> dict[str, Any]:
    assert _LAB is not None
    bench = _LAB.open(selection)
    bench.warm()
    return bench.evaluate(Recipe.from_dict(recipe), per_task=per_task).to_dict()


def evaluate(  # noqa: PLR0917
    lab: Lab, selection: Mapping[str, Any], recipe: Recipe, per_task: int | None, progress: Any, stop: Any
) -> dict[str, Any] | None:
    """The evaluation as plain values; None for models without a suite."""
    bench = lab.open(selection)
    if bench.suite is None:
        bench.merged(recipe, progress=progress, stop=stop)
        return None
    if zerogpu.FORKED:
        return _evaluate_elsewhere(dict(selection), recipe.to_dict(), per_task)
    return bench.evaluate(recipe, per_task=per_task, progress=progress, stop=stop).to_dict()


def result_of(
    lab: Lab, selection: Mapping[str, Any], recipe: Recipe, method: Mapping[str, Any], *, tuned: bool,
    per_task: int | None, progress: Any = None, stop: Any = None,
) -> views.Result:  # fmt: skip
    """Merge, measure, and put the base and the experts on the same items beside it."""
    bench = lab.open(selection)
    if not bench.ready:
        bench.warm(progress, stop)
    started = time.perf_counter()
    data = lab.data(selection) if method.get("kind", "tensor") != "tensor" else None
    if data is not None:  # these take a while: say how far they are
        data.merged(recipe, progress, stop)
    evaluation = evaluate(lab, selection, recipe, per_task, progress, stop)
    seconds = time.perf_counter() - started
    if data is not None and evaluation is not None:
        used = "; ".join(filter(None, (data.used(recipe), evaluation.get("data_used"))))
        evaluation = {**evaluation, "data_used": used}
    base, experts = references(lab, selection, per_task, progress, stop) if evaluation else (None, None)
    return {
        "id": id_of(recipe, per_task),
        "label": label(recipe, method, len(selection["experts"])),
        "method": recipe.merge_method,
        "recipe": recipe.to_dict(),
        "hash": recipe.hash,
        "evaluation": evaluation,
        "base": base,
        "experts": experts,
        "titles": lab.titles(selection),
        "per_task": per_task,
        "tuned": tuned,
        "seconds": seconds,
    }


def id_of(recipe: Recipe, per_task: int | None) -> str:
    """What a result is told apart by: the merge, and what it was measured on."""
    return f"{recipe.hash[:12]}/{recipe.suite}/{per_task}"


def references(
    lab: Lab, selection: Mapping[str, Any], per_task: int | None, progress: Any, stop: Any
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The base and the experts: from shipped predictions, else the base is measured and the experts are left out."""
    bench = lab.open(selection)
    try:
        found = bench.references(per_task)
        return found["base"].to_dict(), found["experts"].to_dict()
    except Cancelled:
        raise
    except MergeLabError:
        return bench.evaluate(None, per_task=per_task, progress=progress, stop=stop).to_dict(), None


def label(recipe: Recipe, method: Mapping[str, Any], available: int) -> str:
    """A short name of a result: the method, its coefficient, how many of the experts."""
    text = str(method["title"])
    if "per" in recipe.parameters:
        text += f" per {recipe.parameters['per']}"
    for name, sign in (("iterations", "iterations"), ("lambda", "λ"), ("t", "t"), ("density", "density")):
        if name in recipe.parameters and not method.get("learns"):
            text += f" {sign}={recipe.parameters[name]:g}"
            break
    weights = {entry.parameters.get("weight", 1.0) for entry in recipe.models}
    if len(weights) > 1 or weights != {1.0}:
        text += ", own weights"
    if len(recipe.models) != available:
        text += f", {len(recipe.models)} of {available}"
    return text


def predict(  # noqa: PLR0917
    lab: Lab,
    selection: Mapping[str, Any],
    recipe: Recipe,
    picture: Mapping[str, Any],
    progress: Any = None,
    stop: Any = None,
) -> dict[str, Any] | None:
    """Class probabilities of the base, the right expert and the merge for a picture.

    ``picture`` is ``{"task", "place"}`` (the place-th sample of the task), ``{"task", "index"}`` (in its test split)
    or ``{"task", "pixels": uint8 [H, W, 3]}``.
    """
    bench = lab.open(selection)
    if bench.suite is None or not picture["task"]:
        return None
    if not bench.ready:
        bench.warm(progress, stop)
    task, truth = picture["task"], None
    if picture.get("pixels") is not None:
        pixels = np.asarray(picture["pixels"], dtype=np.uint8)
    elif picture.get("index") is not None:
        pixels, truth = test_picture(bench, task, picture["index"])
    else:
        samples = bench.samples(task)
        _, pixels, truth = samples[picture.get("place", 0) % len(samples)]
    predictions = bench.predict(recipe, task, pixels[None])
    return {
        "task": task,
        "title": lab.titles(selection).get(task, task),
        "truth": truth,
        "rows": views.prediction_rows(predictions),
        "png": views.png(pixels),
    }


def test_picture(bench: Any, task: str, index: int) -> tuple[np.ndarray, str]:
    """A picture of a task's test split and its label's name."""
    chosen = bench.task(task)
    images, labels = chosen.split("test")
    return np.asarray(images[index]), str(chosen.classes[int(labels[index])])
