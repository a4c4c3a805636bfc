"""The theorem lab on a zoo: what :mod:`mergelab.training.theorem` finds, with accuracies of the merged models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...engine import pick_device
from ...progress import Progress, Stop
from ...training.ground import Ground
from ...training.recipe import TrainRecipe
from ...training.theorem import theorem
from . import documents
from .record import plain
from .references import data_used
from .run import merged_start
from .watch import Watch

FORMAT = "mergelab-theorem/1"


def theorem_lab(
    recipe: TrainRecipe, *, device: str = "auto", progress: Progress | None = None, stop: Stop | None = None,
    **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """Hold task vectors against gradients on a recipe's model and items; the document, as plain data.

    Of the recipe count the model, what it starts from, the suite, tasks, split, images, seed and what is watched; the
    optimisers and rates are ``options`` of :func:`mergelab.training.theorem.theorem`. Accuracy is measured on the
    watched items after every number of steps and chooses nothing.

    Raises MergeLabError as that function does, Cancelled after ``stop``.
    """
    where = pick_device(device)
    if device == "auto" and where.type == "mps":
        where = pick_device("cpu")  # MPS has no float64
    ground = Ground(recipe, str(where))
    wanted = recipe.watch
    watch = None if wanted.split == "none" else Watch(ground, wanted.split, wanted.limit)

    def measure(state: Mapping[str, Tensor]) -> dict[str, float]:
        assert watch is not None
        return watch.measure(state, stop=stop).accuracy

    found = theorem(
        ground.learner, [ground.lesson(name) for name in ground.names], seed=recipe.seed, start=_start(ground, stop),
        measure=None if watch is None else measure, progress=progress, stop=stop, **options,
    )  # fmt: skip
    told = {
        "format": FORMAT, "base_model": recipe.base_model, "suite": recipe.suite,
        "start": recipe.to_dict().get("start"), "titles": {task.name: task.title for task in ground.tasks},
        "watch": {"split": wanted.split, "items": {} if watch is None else watch.items}, "seed": recipe.seed,
        "device": where.type, "data_used": data_used(ground),
    }  # fmt: skip
    return plain({**told, **found.to_dict()})


def _start(ground: Ground, stop: Stop | None) -> dict[str, Tensor] | None:
    """The tensors of the merge or checkpoint that the recipe starts from, where it is not the base."""
    if ground.recipe.start is None:
        return None
    tensors = merged_start(ground, stop)
    return {name: tensors[name] for name in ground.trained()}


def write_theorem(document: Mapping[str, Any], path: str | Path, *, overwrite: bool = False) -> Path:
    """Into one file, whole or not at all."""
    return documents.write(document, path, overwrite=overwrite)


def read_theorem(path: str | Path) -> dict[str, Any]:
    """The document of a file that :func:`write_theorem` wrote; CheckpointError for anything else."""
    return documents.read(path, FORMAT, "run the theorem lab again")
