"""FeatCal on a merge in memory: what it would take, what it does to accuracies, the command that writes the same."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..checkpoints import Checkpoint, MemoryCheckpoint
from ..errors import TaskError
from ..progress import Progress, Stop
from ..recipe import Recipe
from . import data_plans
from .calibrated import BATCH, DriftSettings, fitted, pictures_of

if TYPE_CHECKING:
    from ..calibration.featcal_cost import FeatureCost
    from .bench import Bench

_costs: dict[tuple[Any, ...], FeatureCost] = {}


def calibrate_merge(
    bench: Bench, recipe: Recipe, *, examples: int = 256, split: str = "val", settings: DriftSettings | None = None,
    per_task: int | None = 40, progress: Progress | None = None, stop: Stop | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Calibrate the features of a recipe's merge towards its experts' and measure it before and after, as plain values.

    ``accuracy``: task -> ``n`` and, before and after, accuracy and interval, on ``per_task`` test pictures;
    ``tensors``: name -> share of its length by which it moved; ``command``: what writes the same model from the
    recipe's merge in the folder ``merged``, there rounded to the files' number format.

    Raises TaskError where no merged expert has a task in the suite, or a task no pictures; Cancelled after ``stop``.
    """
    from ..tasks import evaluate
    from ..training.inputs import data_used

    started = time.perf_counter()
    settings = settings or DriftSettings()
    model, suite = bench.model(), bench.suite
    assert suite is not None  # the model is there only with a suite
    experts = _experts(bench, recipe)
    batches = pictures_of(model, suite, experts, split=split, examples=examples)
    state = bench.merged(recipe, progress=progress, stop=stop)
    merged = MemoryCheckpoint(dict(state), name="the merge", weights_hash=lambda: recipe.hash)
    found = fitted(
        model, merged, bench._checkpoint(recipe.base_model or bench.base), experts, batches,
        weights=model.prepare(state, "the merge"), settings=settings, progress=progress, stop=stop,
    )  # fmt: skip
    options: Mapping[str, Any] = {"tasks": list(experts), "limit": per_task, "progress": progress, "stop": stop}
    before = evaluate(model, suite, state=state, **options).tasks
    after = evaluate(model, suite, state={**state, **found.state}, **options).tasks
    scores = {
        task: {"n": after[task].n, "before": before[task].accuracy, "after": after[task].accuracy,
               "before_interval": list(before[task].interval), "after_interval": list(after[task].interval)}
        for task in experts
    }  # fmt: skip
    return {
        "hash": recipe.hash, "tasks": list(experts), "split": split, "examples": dict(found.examples),
        "settings": {"ridge": settings.ridge, "anchor": settings.anchor, "teacher": settings.teacher},
        "accuracy": scores, "blocks": list(found.blocks),
        "tensors": {entry["tensor"]: entry["change"] / entry["size"] if entry["size"] else 0.0 for entry in found.log},
        "skipped": dict(found.skipped), "data_used": data_used(found.examples, split),
        "merge_used": data_plans.data_used(bench, recipe), "transductive": split == "test", "per_task": per_task,
        "command": command(bench, recipe, list(experts), settings, examples=examples, split=split),
        "seconds": time.perf_counter() - started,
    }  # fmt: skip


def calibration_cost(bench: Bench, recipe: Recipe, *, examples: int = 256, split: str = "val") -> dict[str, Any]:
    """About what :func:`calibrate_merge` takes: ``{"seconds", "pictures", "tasks", "blocks", "timed"}``.

    One block is timed here, once for the same experts; nothing is merged for it. Measuring is not counted.
    """
    from ..calibration.featcal_cost import feature_cost

    model, suite = bench.model(), bench.suite
    assert suite is not None  # the model is there only with a suite
    experts = _experts(bench, recipe)
    batches = pictures_of(model, suite, experts, split=split, examples=examples)  # says what is not there
    pictures = sum(min(examples, len(suite[task].split(split)[1])) for task in batches)
    key = (bench.base, bench.device, *(entry.model for entry in recipe.models))
    if key not in _costs:
        first = next(iter(experts))
        batch = next(iter(pictures_of(model, suite, [first], split=split, examples=BATCH)[first]()))
        base = bench._checkpoint(recipe.base_model or bench.base)
        with model.using(model.prepare(base)) as module:
            _costs[key] = feature_cost(
                module, base, experts, batch, forward=model.through, spelling=model.own_names(list(base))
            )
    one = _costs[key]
    return {"seconds": one.seconds(pictures), "pictures": pictures, "tasks": len(experts), "blocks": one.blocks,
            "timed": one.timed}  # fmt: skip


def command(
    bench: Bench, recipe: Recipe, tasks: Sequence[str], settings: DriftSettings, *, examples: int, split: str
) -> str:
    """The command line that calibrates the recipe's merge in the folder ``merged`` as it was done here."""
    words = ["python", "-m", "mergelab", "calibrate", "merged", "--out", "calibrated"]
    words += ["--suite", str(recipe.suite or _suite_of(bench)), "--tasks", ",".join(tasks)]
    words += ["--examples", str(examples), "--split", split]
    for name in ("ridge", "anchor", "teacher"):
        words += [f"--{name}", repr(float(getattr(settings, name)))]
    if recipe.base_model is None:  # nothing beside the merge says it
        words += ["--base", bench.base]
    return shlex.join(words)


def _suite_of(bench: Bench) -> Any:
    return getattr(bench.suite, "folder", None) or getattr(bench.suite, "name", "SUITE")


def _experts(bench: Bench, recipe: Recipe) -> dict[str, Checkpoint]:
    """The merged experts by task, in the suite's order."""
    assert bench.suite is not None
    sources = {name: entry.model for name, entry in zip(recipe.names, recipe.models, strict=True)}
    tasks = [name for name in bench.suite.names if name in sources]
    if not tasks:
        raise TaskError(
            "None of the merged experts has a task of its name in the suite, so there are no features to calibrate to."
        )
    return {task: bench._checkpoint(sources[task]) for task in tasks}
