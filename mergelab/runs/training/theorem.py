"""The theorem lab on a zoo: what :mod:`mergelab.training.theorem` finds, with accuracies of the merged models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...checkpoints import load
from ...checkpoints.whole import whole_file
from ...engine import pick_device
from ...errors import CheckpointError
from ...progress import Progress, Stop
from ...recipe import Recipe
from ...training.ground import Ground
from ...training.recipe import TrainRecipe
from ...training.theorem import theorem
from ..judges import Judge
from .record import plain
from .references import data_used
from .watch import Watch

FORMAT = "mergelab-theorem/1"
_MOST_BYTES = 8 << 20


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
    given = ground.recipe.start
    if given is None:
        return None
    made = Judge(None, None, stop).merged(given) if isinstance(given, Recipe) else load(given)
    tensors = ground.model.prepare(made).tensors
    return {name: tensors[name] for name in ground.trained()}


def write_theorem(document: Mapping[str, Any], path: str | Path, *, overwrite: bool = False) -> Path:
    """Into one file, whole or not at all."""
    with whole_file(path, overwrite=overwrite) as partial:
        partial.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return Path(path)


def read_theorem(path: str | Path) -> dict[str, Any]:
    """The document of a file that :func:`write_theorem` wrote; CheckpointError for anything else."""
    path = Path(path).expanduser()
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise CheckpointError(f"{path.name} is larger than {_MOST_BYTES >> 20} MB, which no theorem lab writes.")
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror or error}.") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path.name} is not valid JSON; run the theorem lab again.") from None
    found = data.get("format") if isinstance(data, Mapping) else type(data).__name__
    if found != FORMAT:
        raise CheckpointError(f"{path.name}: the format is {str(found)[:40]!r}, this version reads {FORMAT!r}.")
    return dict(data)
