"""Building zoos: from packages (the starter zoo) or from any folder of tasks and any base that a family can load.

Everything is made in a partial folder beside the target, which is renamed when it is whole: a build that fails, is
stopped or is killed leaves nothing that opens as a zoo.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checkpoints import load, whole_folder
from ..models import Model, build, family_of
from ..models.build import config_of
from ..progress import Progress, Stop, report
from ..tasks import Suite, Task, load_suite, subset_indices
from ..training import Settings, Tuned, finetune
from . import write
from .card import card
from .layout import ZooError, zoo_folders
from .measure import BRIEF, CANDIDATES, Candidate, measure, tuned

#: Most validation pictures a task that a general build measures a coefficient on.
VALIDATION = 100


@dataclass(frozen=True)
class Job:
    """One expert to train: pictures uint8 ``[N, ...]``, labels ``[N]``, and how."""

    task: str
    images: np.ndarray
    labels: np.ndarray
    classes: int
    settings: Settings


def build_zoo(
    tasks: str | Path,
    base: str = "starter",
    *,
    out: str | Path,
    tune: str = "lora",
    epochs: int = 3,
    rank: int = 8,
    images: int | None = 2000,
    seed: int = 0,
    resolution: int | None = None,
    overwrite: bool = False,
    candidates: Sequence[Candidate] = BRIEF,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Path:
    """Fine-tune ``base`` on every task of a suite and write a zoo at ``out``; returns its folder.

    Args:
        tasks: a folder of ``.npz`` tasks, a folder with a suite.json, or a zoo's name.
        base: a zoo's name (its base is taken) or any source of a model that a family can load.
        tune: ``full``, ``lora`` or ``ia3``.
        images: at most so many training pictures a task (None: all).
        resolution: side of the pictures that the model sees; default: what the base says.

    Raises:
        ZooError, TaskError, CheckpointError: what cannot be read, built or written.
        Cancelled: ``stop`` was set; nothing was written.
    """
    suite = load_suite(tasks)
    settings = Settings(tune=tune, epochs=epochs, rank=rank, seed=seed)
    target = Path(out).expanduser().resolve()
    started = time.perf_counter()
    with whole_folder(target, overwrite=overwrite) as folder:
        origin = _base_source(base)
        _copy_base(folder / "base", origin, resolution)
        _copy_suite(folder / "suite", suite, target.name)
        jobs = []
        for task in suite:
            x, y = _training(task, images, seed)
            jobs.append(lambda t=task, x=x, y=y: Job(t.name, x, y, len(t.classes), settings))
        names = [task.name for task in suite]
        title = f"{suite.title} on {load(origin).name}"
        made = _Made(folder, target.name, title, names, tune, seed)
        made.describe()
        training = train_experts(folder, jobs, made.base, progress=progress, stop=stop)
        about = {"training": training, "base": origin, "resolution": build(folder / "base").resolution}
        made.finish(about, started, candidates, limit=VALIDATION, progress=progress, stop=stop)
    return target


def build_starter(
    out: str | Path,
    *,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Path:
    """Build the starter zoo at ``out`` from what packages carry; about an hour on two cores.

    Needs the optional extra ``build`` and the Debian packages that :mod:`mergelab.zoo.starter` names; what is missing
    is said before anything is trained.
    """
    from . import recipe as starter

    target = Path(out).expanduser().resolve()
    started = time.perf_counter()
    with whole_folder(target, overwrite=overwrite) as folder:
        report(progress, 0, 1, "converting the base")
        conversion = starter.write_base(folder / "base")
        sources = starter.write_suite(folder / "suite", seed, progress, stop)
        names = [name for name, source in sources.items() if source.seen]
        made = _Made(folder, "starter", starter.TITLE, names, "lora", seed)
        made.describe()
        jobs = [lambda s=sources[name]: starter.job(s, seed) for name in names]
        training = train_experts(folder, jobs, made.base, progress=progress, stop=stop)
        about = {"training": training, **starter.about(sources, conversion)}
        made.finish(about, started, CANDIDATES, limit=None, oracle=True, progress=progress, stop=stop)
    return target


def train_experts(
    folder: Path,
    jobs: Sequence[Callable[[], Job]],
    base_name: str,
    *,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> dict[str, dict[str, Any]]:
    """Train each job's expert from ``folder/base`` and write it to ``folder/experts/<task>``.

    Returns, for the card, how each was trained: images, epochs, rates, losses, seconds.
    """
    log = {}
    for i, make in enumerate(jobs):
        job = make()
        began = time.perf_counter()
        model = build(folder / "base")

        def step(done: int, total: int, text: str, i: int = i, task: str = job.task) -> None:
            report(progress, i * total + done, len(jobs) * total, f"training {task}, {text}")

        result = train(model, job, progress=step, stop=stop)
        place = folder / "experts" / job.task
        write.write_expert(
            place,
            result.module,
            result.weight,
            result.bias,
            config=model.config,
            source=base_name,
            base=folder / "base",
        )
        log[job.task] = {
            "images": len(job.images), "epochs": job.settings.epochs, "batch": job.settings.batch,
            "rate": job.settings.tower_rate, "head_rate": job.settings.head_rate, "tune": job.settings.tune,
            "rank": job.settings.rank if job.settings.tune == "lora" else None,
            "losses": [round(loss, 4) for loss in result.losses], "seconds": round(time.perf_counter() - began, 1),
        }  # fmt: skip
    return log


def train(model: Model, job: Job, *, progress: Progress | None = None, stop: Stop | None = None) -> Tuned:
    """Fine-tune ``model`` on one job, seeing pictures exactly as evaluation will show them."""
    family = family_of(model.config)

    def features(module: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        pixels = model.preprocess(images).expand(-1, 3, -1, -1)
        return family.image_features(module, pixels)

    return finetune(
        model.module,
        features,
        job.images,
        job.labels,
        classes=job.classes,
        settings=job.settings,
        progress=progress,
        stop=stop,
    )


@dataclass(frozen=True)
class _Made:
    """A zoo in the making, in its partial folder."""

    folder: Path
    name: str
    title: str
    tasks: list[str]
    tune: str
    seed: int

    @property
    def base(self) -> str:
        return f"zoo:{self.name}/base"

    def describe(self, tuned: Mapping[str, Any] | None = None) -> None:
        """Write ``zoo.json``."""
        write.write_zoo(
            self.folder, name=self.name, title=self.title, tasks=self.tasks, tune=self.tune, seed=self.seed, tuned=tuned
        )

    def finish(
        self,
        about: Mapping[str, Any],
        started: float,
        candidates: Sequence[Candidate],
        *,
        limit: int | None,
        oracle: bool = False,
        progress: Progress | None,
        stop: Stop | None,
    ) -> None:
        """Measure, write down what validation chose, and write the card."""
        took = {"seconds": round(time.perf_counter() - started, 1), "threads": torch.get_num_threads()}
        found = measure(
            self.folder, self.name, candidates, seed=self.seed, limit=limit, oracle=oracle,
            extra={"about": {**about, **took}}, progress=progress, stop=stop,
        )  # fmt: skip
        self.describe(tuned(found))
        (self.folder / "README.md").write_text(card(self.folder, found), encoding="utf-8")


def _base_source(base: str) -> str:
    return f"zoo:{base}/base" if base in zoo_folders() else base


def _copy_base(folder: Path, source: str, resolution: int | None) -> None:
    """The base under the names of its own module, so that adapters trained on it name the same tensors."""
    checkpoint = load(source)
    model = build(checkpoint)
    config, names = dict(config_of(checkpoint)), list(checkpoint)
    canonical = family_of(config).canonical
    stored = {canonical(name): name for name in names}
    state = {
        name: tensor.to(checkpoint[stored[canonical(name)]].dtype) if canonical(name) in stored else tensor
        for name, tensor in model.weights.tensors.items()
    }
    preprocess = replace(model.preprocess, resolution=resolution) if resolution else model.preprocess
    write.write_base(
        folder, {n: t.contiguous() for n, t in state.items()}, config, size=preprocess.resolution,
        mean=preprocess.mean, std=preprocess.std, source=checkpoint.folder,
    )  # fmt: skip


def _copy_suite(folder: Path, suite: Suite, name: str) -> None:
    """The suite's packs with a validation split of their own, and its listing with every task seen."""
    listing = []
    for task in suite:
        splits = {}
        for split in ("train", "val", "test"):
            if task.has(split):
                x, y = task.split(split)
                splits[split] = (
                    _compact(x.numpy()),
                    y.numpy().astype(np.uint16 if len(task.classes) > 256 else np.uint8),
                )
        write.write_pack(folder / f"{task.name}.npz", splits)
        listing.append({
            "name": task.name, "title": task.title, "seen": True, "file": f"{task.name}.npz",
            "classes": list(task.classes), "templates": list(task.templates), "source": task.source,
            "licence": task.licence, "note": task.note,
        })  # fmt: skip
    write.write_suite(folder, name, suite.title, listing)


def _compact(x: np.ndarray) -> np.ndarray:
    """Grey pictures that were given as three equal channels, as one."""
    grey = x.ndim == 4 and (x[..., 0] == x[..., 1]).all() and (x[..., 0] == x[..., 2]).all()
    return np.ascontiguousarray(x[..., 0]) if grey else x


def _training(task: Task, images: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    if not task.has("train"):
        raise ZooError(f"The task {task.name} has no training pictures (x_train), so no expert can be made for it.")
    x, y = task.split("train")
    if images is not None and images < len(y):
        chosen = subset_indices(task, "train", images, seed)
        x, y = x[chosen], y[chosen]
    return _compact(x.numpy()), y.numpy()
