"""A bench: one base, its experts and their suite, kept at hand so that a moved slider answers in about a second.

The base and the experts are read once, expanded to float32 and kept in memory while they fit; merges and evaluations
are cached by the recipe's hash, so that going back to an earlier setting costs nothing.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from ..analysis import Geometry, geometry
from ..checkpoints import Checkpoint, MemoryCheckpoint, load
from ..engine import Plan, merge_to_folder, merge_to_memory, pick_device
from ..engine.adapters import as_weights
from ..engine.plan import experts as recipe_experts
from ..engine.workers import default_threads, ordered
from ..errors import TaskError
from ..models import Model, build
from ..progress import Progress, Stop, report
from ..recipe import Recipe
from ..tasks import Evaluation, Head, Suite, Task, evaluate, heads_for, load_suite, probabilities
from ..zoo import Zoo, open_zoo
from .cache import ByteCache
from .data_plans import data_plan, kept_state, plan_key
from .references import references

if TYPE_CHECKING:
    import torch

#: Merged state dicts kept for going back and forth between settings.
_MERGED_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Prediction:
    """What one model makes of one picture under one task's head."""

    model: str  # "base", "expert" or "merged"
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    seconds: float


class Bench:
    """A base, experts and a suite, resident. All methods may be called from several threads."""

    def __init__(
        self,
        base: str,
        experts: Mapping[str, str],
        suite: Suite | None,
        *,
        zoo: Zoo | None = None,
        device: str = "auto",
    ) -> None:
        self.base = base
        self.experts = dict(experts)
        self.suite = suite
        self.zoo = zoo
        self.device = str(pick_device(device))
        self._resident: dict[str, Checkpoint] = {}
        self._model: Model | None = None
        self._geometry: Geometry | None = None
        self._merged: ByteCache[Mapping[str, torch.Tensor]] = ByteCache(_MERGED_BYTES, _state_bytes)
        self._evaluations: dict[tuple[Any, ...], Evaluation] = {}
        self._plans: dict[tuple[Any, ...], Plan] = {}
        self._warming = threading.RLock()

    @property
    def ready(self) -> bool:
        """True once :meth:`warm` has run: merging and predicting answer without loading anything."""
        return self._model is not None and len(self._resident) == len(self._sources)

    @property
    def _sources(self) -> list[str]:
        return [self.base, *dict.fromkeys(self.experts.values())]

    def warm(self, progress: Progress | None = None, stop: Stop | None = None) -> None:
        """Read the base and the experts, and build the model. Only the first call does work.

        Checkpoints are expanded into memory while all of them fit into a quarter of what is free; otherwise they stay
        on disk and every merge streams them.
        """
        with self._warming:
            if self.ready:
                return
            total = len(self._sources) + 1
            opened = {source: load(source) for source in self._sources}
            elements = sum(_elements(checkpoint) for checkpoint in opened.values())
            fits = 4 * elements <= psutil.virtual_memory().available / 4
            for done, (source, checkpoint) in enumerate(opened.items()):
                if stop is not None:
                    stop.check()
                report(progress, done, total, f"reading {source}")
                self._resident[source] = _expand(checkpoint, stop) if fits else checkpoint
            if self.suite is not None:
                report(progress, total - 1, total, "building the model")
                self._model = build(opened[self.base], device=self.device)
            report(progress, total, total, "ready")

    def model(self) -> Model:
        """The model that weights are put into for evaluating; :class:`TaskError` where nothing can be evaluated."""
        self.warm()
        if self._model is None:
            raise TaskError("These models have no suite, so there is nothing to measure them on. Choose a suite first.")
        return self._model

    def merged(
        self, recipe: Recipe, *, progress: Progress | None = None, stop: Stop | None = None
    ) -> Mapping[str, torch.Tensor]:
        """The merged tensors of ``recipe``, in float32, from memory; cached by the recipe's hash."""
        state = self._merged.get(recipe.hash)
        if state is None:
            state = kept_state(self, recipe)
            if state is None:
                plan = self.plan(recipe)
                state = as_weights(plan, merge_to_memory(plan, device=self.device, progress=progress, stop=stop))
            self._merged.put(recipe.hash, state)
        return state

    def plan(self, recipe: Recipe) -> Plan:
        """The plan of a recipe over resident checkpoints.

        Recipes that differ in values only share what was read and compared.
        """
        models = tuple(entry.model for entry in recipe.models)
        key: tuple[Any, ...] = (recipe.base_model, models, recipe.names, recipe.dtype, recipe.space, *plan_key(recipe))
        if key not in self._plans:
            self._plans[key] = data_plan(self, recipe.replace(out_dtype=None), self.loader(recipe))
            return self._plans[key]
        per_model = {name: entry.parameters for name, entry in recipe_experts(recipe).items() if entry.parameters}
        return self._plans[key].with_parameters(
            recipe.parameters, per_model, method=recipe.merge_method, seed=recipe.seed
        )

    def loader(self, recipe: Recipe) -> Callable[..., Checkpoint] | None:
        """What opens a recipe's sources: resident copies; None (from disk) where adapters' own vectors are merged."""
        return self._load if recipe.space is None else None

    def _load(self, source: str, **_options: object) -> Checkpoint:
        return self._checkpoint(source)

    def evaluate(
        self,
        recipe: Recipe | None,
        *,
        per_task: int | None = 40,
        progress: Progress | None = None,
        stop: Stop | None = None,
    ) -> Evaluation:
        """Measure the merge on ``per_task`` items a task (None: the whole test sets, and the unseen tasks as well).

        ``recipe`` None measures the base under the experts' heads.
        """
        key = (recipe.hash if recipe else None, per_task)
        if key not in self._evaluations:
            model = self.model()
            assert self.suite is not None  # the model is there only with a suite
            state = self.merged(recipe, stop=stop) if recipe else self._checkpoint(self.base)
            found = evaluate(
                model, self.suite, state=state, limit=per_task, unseen=per_task is None,
                progress=progress, stop=stop,
            )  # fmt: skip
            source = (recipe.title or recipe.merge_method) if recipe else "base"
            self._evaluations[key] = replace(found, source=source)
        return self._evaluations[key]

    def references(self, per_task: int | None = 40) -> dict[str, Evaluation]:
        """The base and the experts on the same items, from the predictions that the zoo ships."""
        if self.suite is None:
            raise TaskError("These models have no suite, so there is nothing to compare with. Choose a suite first.")
        return references(self.suite, per_task)

    def predict(self, recipe: Recipe, task: str, picture: np.ndarray) -> list[Prediction]:
        """Class probabilities of the base, the task's expert and the merge for ``picture`` ``[1, H, W, 3]`` uint8."""
        chosen, head = self.task(task), self._head(task)
        states: dict[str, Mapping[str, torch.Tensor]] = {"base": self._checkpoint(self.base)}
        if task in self.experts:
            states["expert"] = self._checkpoint(self.experts[task])
        states["merged"] = self.merged(recipe)
        found = []
        for name, state in states.items():
            started = time.perf_counter()
            row = probabilities(self.model(), picture, head, state=state)[0]
            found.append(Prediction(name, tuple(chosen.classes), tuple(row), time.perf_counter() - started))
        return found

    def task(self, name: str) -> Task:
        """The task called ``name``; :class:`TaskError` with a suggestion if there is none."""
        if self.suite is None:
            raise TaskError("These models have no suite, so there are no tasks to predict. Choose a suite first.")
        return self.suite[name]

    def samples(self, task: str, count: int = 12, seed: int = 0) -> list[tuple[int, np.ndarray, str]]:
        """``count`` test pictures of ``task`` to pick from: (index in the test split, picture ``[H, W, 3]``, label)."""
        chosen = self.task(task)
        images, labels = chosen.split("test")
        picks = np.random.default_rng(seed).permutation(len(images))[:count]
        return [(int(i), images[int(i)].numpy(), chosen.classes[int(labels[int(i)])]) for i in picks]

    def geometry(self, progress: Progress | None = None, stop: Stop | None = None) -> Geometry:
        """How the experts' task vectors lie to each other (tables of :mod:`mergelab.analysis`); computed once."""
        if self._geometry is None:
            self.warm()
            experts = {name: self._checkpoint(source) for name, source in self.experts.items()}
            self._geometry = geometry(self._checkpoint(self.base), experts, progress=progress, stop=stop)
        return self._geometry

    def export(
        self,
        recipe: Recipe,
        *,
        folder: Path | None = None,
        progress: Progress | None = None,
        stop: Stop | None = None,
    ) -> Path:
        """Write the merged checkpoint from its sources and pack it; the path of a ``.zip`` in a fresh folder.

        The folder's random name keeps one visitor's result from another; ``folder`` says where it is made.
        """
        parent = Path(tempfile.mkdtemp(prefix="merge-", dir=folder))
        name = f"mergelab-{recipe.merge_method}-{recipe.hash[:8]}"
        try:
            merge_to_folder(data_plan(self, recipe), parent / name, device=self.device, progress=progress, stop=stop)
            packed = shutil.make_archive(str(parent / name), "zip", root_dir=parent, base_dir=name)
            shutil.rmtree(parent / name)
        except BaseException:
            shutil.rmtree(parent, ignore_errors=True)
            raise
        return Path(packed)

    def _checkpoint(self, source: str) -> Checkpoint:
        """A source from memory where it is resident; others are opened lazily."""
        self.warm()
        return self._resident.get(source) or load(source)

    def _head(self, task: str) -> Head:
        heads = heads_for(self.suite) if self.suite else {}
        if task not in heads:
            raise TaskError(f"The task {task!r} has no head: predictions need one of {', '.join(heads) or 'none'}.")
        return heads[task]


def _elements(checkpoint: Checkpoint) -> int:
    return sum(int(np.prod(info.shape, dtype=np.int64)) for info in checkpoint.infos.values())


def _expand(checkpoint: Checkpoint, stop: Stop | None = None) -> Checkpoint:
    """The checkpoint as float32 tensors in memory, under its source as name; tensors are read side by side.

    It keeps the identity of its source, so that statistics that were collected from that fit the copy as well.
    """
    read = ordered(lambda name: _float32(checkpoint[name]), list(checkpoint), default_threads(), stop)
    return MemoryCheckpoint(dict(read), name=checkpoint.source, weights_hash=lambda: checkpoint.weights_hash)


def _float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _state_bytes(state: Mapping[str, torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


_open: dict[tuple[Any, ...], Bench] = {}
_opening = threading.Lock()
#: Benches of other selections that are kept: each holds a base and its experts.
_MOST_BENCHES = 3


def open_bench(zoo: str | Path = "starter", *, device: str = "auto") -> Bench:
    """The bench of a zoo; one per process."""
    opened = open_zoo(zoo)
    return _kept(
        ("zoo", str(opened.folder), device),
        lambda: Bench(opened.base, opened.experts, load_suite(opened.folder), zoo=opened, device=device),
    )


def custom_bench(
    base: str, experts: Mapping[str, str], suite: str | Path | None = None, *, device: str = "auto"
) -> Bench:
    """A bench of any base and experts, measured on ``suite`` where one is given."""
    key = ("custom", base, tuple(sorted(experts.items())), str(suite), device)
    return _kept(key, lambda: Bench(base, experts, load_suite(suite) if suite else None, device=device))


def _kept(key: tuple[Any, ...], make: Any) -> Bench:
    with _opening:
        if key not in _open:
            customs: Sequence[tuple[Any, ...]] = [held for held in _open if held[0] == "custom"]
            if key[0] == "custom" and len(customs) >= _MOST_BENCHES:
                del _open[customs[0]]
            _open[key] = make()
        return _open[key]
