"""FeatCal on a merged checkpoint: finds its experts, base and pictures, calibrates, writes another checkpoint."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..calibration.drift import DriftSettings
from ..calibration.featcal import Calibrated, calibrate_features
from ..calibration.through import Batches, batches_of
from ..checkpoints import Checkpoint, load, torch_dtype, write
from ..checkpoints.whole import check_target
from ..engine.folder import RECIPE_FILE, copied_files
from ..engine.structure import compare
from ..errors import CheckpointError, TaskError
from ..models import Model, Weights, build
from ..progress import Progress, Stop
from ..recipe import Recipe
from ..tasks import Suite, load_suite
from ..training.inputs import data_used, drawn, task_of
from ..zoo import open_zoo
from .surgery import experts_of

#: What was done, beside the calibrated weights.
CALIBRATION_FILE = "mergelab_calibration.json"
#: Pictures that pass at a time.
BATCH = 32
_PAPER = "FeatCal (Gu et al., 2026)", "https://arxiv.org/abs/2605.13030"


@dataclass(frozen=True)
class Written:
    """The new checkpoint's folder, what was calibrated, on what, and how long it took."""

    folder: Path
    calibrated: Calibrated
    data_used: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without the tensors."""
        found = self.calibrated
        return {
            "out": str(self.folder), "tensors": len(found.state), "blocks": list(found.blocks),
            "examples": dict(found.examples), "data_used": self.data_used, "seconds": round(self.seconds, 1),
            "skipped": dict(found.skipped),
        }  # fmt: skip


def calibrate(
    merged: str | Path,
    out: str | Path,
    suite: Suite | str | Path = "starter",
    *,
    base: str | Path | None = None,
    experts: Mapping[str, Any] | None = None,
    tasks: Iterable[str] | None = None,
    split: str = "val",
    examples: int = 256,
    settings: DriftSettings | None = None,
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Written:
    """Calibrate a merged checkpoint towards its experts' features and write the result to the folder ``out``.

    ``experts`` (task -> source) and ``base`` are by default those of the recipe beside the merged weights, then of the
    suite's zoo; ``tasks``: only these. At most ``examples`` pictures of every task's ``split`` are passed, drawn
    without a look at their labels.

    Raises TaskError for a task without expert or pictures, and where no base is known; CheckpointError for weights that
    do not fit or a folder that holds something.
    """
    check_target(out, overwrite)
    started = time.perf_counter()
    opened, checkpoint = load_suite(suite), load(merged)
    known = {**experts_of(checkpoint, opened), **(experts or {})}
    chosen = (
        [task.name for task in opened.pick(tasks)] if tasks is not None else [n for n in opened.names if n in known]
    )
    lost = next((name for name in chosen if name not in known), None)
    if lost is not None or not chosen:
        whose = f"the task {lost}" if lost else f"any task of {opened.name}"
        raise TaskError(
            f"There is no expert for {whose}, so there are no features to calibrate to; name one with --expert "
            "TASK=SOURCE."
        )
    model = build(checkpoint, device=device)
    batches = pictures_of(model, opened, chosen, split=split, examples=examples, seed=seed)
    below = load(base if base is not None else _base_of(checkpoint, opened))
    others = {name: load(known[name]) for name in chosen}
    found = fitted(model, checkpoint, below, others, batches, settings=settings, progress=progress, stop=stop)
    used = data_used(found.examples, split)
    seconds = time.perf_counter() - started
    folder = _write(checkpoint, found, out, settings or DriftSettings(), used, seconds, overwrite)
    return Written(folder, found, used, seconds)


def pictures_of(
    model: Model, suite: Suite, names: Iterable[str], *, split: str, examples: int, seed: int = 0, batch: int = BATCH
) -> dict[str, Batches]:
    """Task -> batches of at most ``examples`` of its ``split``'s pictures, drawn without a look at their labels.

    Raises TaskError for a task without such pictures.
    """
    out = {}
    for name in names:
        task = task_of(suite, name)
        images = task.split(split)[0] if task.has(split) else ()
        if not len(images):
            raise TaskError(f"The task {name} has no {split} pictures to pass; take another split or suite.")
        places = drawn(len(images), examples, seed, f"{name}/{split}")
        out[name] = batches_of(images[places], batch, model.pixels)
    return out


def fitted(
    model: Model,
    merged: Checkpoint,
    base: Checkpoint,
    experts: Mapping[str, Checkpoint],
    batches: Mapping[str, Batches],
    *,
    weights: Weights | None = None,
    settings: DriftSettings | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Calibrated:
    """Calibrate the features of ``merged`` towards its experts' (by task).

    ``weights``: those of ``merged``, ready for ``model`` to run with; default: it has them already.

    Raises CheckpointError for a base or an expert that does not fit the merge.
    """
    for problem in compare(merged, "the merge", [("the base", base), *experts.items()]).problems:
        raise CheckpointError(f"{problem.text} {problem.fix}")
    with model.using(weights or model.weights) as module:
        return calibrate_features(
            module, merged, base, experts, batches, forward=model.through, settings=settings,
            spelling=model.own_names(list(merged)), progress=progress, stop=stop,
        )  # fmt: skip


def _base_of(checkpoint: Checkpoint, suite: Suite) -> str:
    recipe = _recipe(checkpoint)
    if recipe is not None and recipe.base_model is not None:
        return recipe.base_model
    if suite.zoo is not None:
        return open_zoo(suite.zoo).base
    raise TaskError(
        f"The base of {checkpoint.name} is not known, and calibrated weights are held near it; give --base."
    )


def _recipe(checkpoint: Checkpoint) -> Recipe | None:
    path = checkpoint.folder / RECIPE_FILE if checkpoint.folder is not None else None
    return Recipe.read(path) if path is not None and path.is_file() else None


def _write(  # noqa: PLR0917
    checkpoint: Checkpoint, found: Calibrated, out: str | Path, settings: DriftSettings, used: str, seconds: float,
    overwrite: bool,
) -> Path:  # fmt: skip
    recipe = _recipe(checkpoint)
    document = {
        "format": "mergelab-calibration/1", "method": "featcal", "settings": asdict(settings), "data_used": used,
        "merged": checkpoint.weights_hash, "recipe": None if recipe is None else recipe.to_dict(),
        "blocks": list(found.blocks), "examples": dict(found.examples), "seconds": round(seconds, 1),
        "skipped": dict(found.skipped), "tensors": [dict(entry) for entry in found.log],
    }  # fmt: skip

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, info in checkpoint.infos.items():
            made = found.state.get(name)
            yield name, checkpoint[name] if made is None else _cast(made, info.dtype)

    plan = {name: (info.dtype, tuple(info.shape)) for name, info in checkpoint.infos.items()}
    files: dict[str, bytes | str] = {
        **copied_files(checkpoint),
        CALIBRATION_FILE: json.dumps(document, indent=1, ensure_ascii=False) + "\n",
        "README.md": _card(checkpoint, used, recipe),
    }
    return write(
        out, tensors(), plan, config=checkpoint.config, files=files,
        metadata={**checkpoint.aliases, "mergelab": __version__}, overwrite=overwrite,
    )  # fmt: skip


def _cast(tensor: Tensor, code: str) -> Tensor:
    dtype: torch.dtype = torch_dtype(code)
    return tensor.to(dtype)


def _card(checkpoint: Checkpoint, used: str, recipe: Recipe | None) -> str:
    made = "" if recipe is None else f"\n## The merge\n\n```yaml\n{recipe.to_yaml().rstrip()}\n```\n"
    return (
        "---\ntags:\n  - merge\n  - mergelab\n---\n\n# A merge with calibrated features\n\n"
        f"{_PAPER[0]}, <{_PAPER[1]}>: layers fitted in forward order to the experts' features. Merged weights: hash "
        f"`{checkpoint.weights_hash[:12]}`. Made with MergeLab {__version__}. Data used: {used}.\n{made}"
    )
