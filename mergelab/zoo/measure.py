"""What a builder measures: base, experts, who is good at whose task, and merges whose coefficient validation chose.

Test pictures choose nothing. For task arithmetic the test value of every coefficient is recorded too, marked as such,
so that a card can show how much the choice on validation costs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from ..checkpoints import Checkpoint, MemoryCheckpoint, load
from ..engine import Plan, merge_to_memory, plan_recipe
from ..models import Model, build
from ..progress import Progress, Stop, report
from ..recipe import ModelEntry, Recipe
from ..tasks import Evaluation, Suite, evaluate, load_suite
from .layout import read_json
from .write import write_json


@dataclass(frozen=True)
class Candidate:
    """A merge to measure. ``grid`` are values of the method's ``lambda`` to choose from; ``seeds`` are repeats."""

    method: str
    title: str
    grid: tuple[float, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)


_SUMS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.8, 1.0)
_MEANS = (0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 1.8, 2.2)
CANDIDATES = (
    Candidate("linear", "Weight average"),
    Candidate("task_arithmetic", "Task arithmetic", _SUMS),
    Candidate("ties", "TIES", _MEANS),
    Candidate("dare_linear", "DARE", _SUMS[:9], {"density": 0.5}, (0, 1, 2)),
    Candidate("dare_ties", "DARE with TIES", _MEANS, {"density": 0.5}, (0, 1, 2)),
    Candidate("breadcrumbs", "Breadcrumbs", _SUMS[1:]),
    Candidate("tsv_m", "TSV-M", (0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.2)),
    Candidate("model_stock", "Model Stock"),
)


#: What any other zoo is measured with: fewer methods and coefficients, because its base may be large.
BRIEF = (
    Candidate("linear", "Weight average"),
    Candidate("task_arithmetic", "Task arithmetic", (0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 1.0)),
    Candidate("ties", "TIES", (0.6, 1.0, 1.5)),
    Candidate("tsv_m", "TSV-M", (0.3, 0.6, 1.0)),
)


class Measure:
    """Measures a zoo's folder that is not in its final place yet: sources are written as they will be."""

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        seed: int = 0,
        steps: int = 1,
        limit: int | None = None,
        progress: Progress | None = None,
        stop: Stop | None = None,
    ) -> None:
        """``name`` is the zoo's, once it is in place; ``steps`` says how many evaluations will come."""
        self.folder, self.name, self.seed, self.limit = folder, name, seed, limit
        self.progress, self.stop = progress, stop
        self._done, self._steps = 0, steps
        listing = read_json(folder / "zoo.json")
        self.tasks: list[str] = list(listing["experts"])
        self._folders = {"base": folder / listing["base"]} | {t: folder / p for t, p in listing["experts"].items()}
        self._opened: dict[str, Checkpoint] = {}
        self._plans: dict[str, Plan] = {}

    @property
    def suite(self) -> Suite:
        return load_suite(self.folder)

    def checkpoint(self, part: str) -> Checkpoint:
        """``base`` or an expert; expanded to memory once while all of them fit into half of the memory."""
        if part not in self._opened:
            lazy = load(self._folders[part])
            fits = lazy.nbytes * (len(self.tasks) + 1) < psutil.virtual_memory().total / 2
            self._opened[part] = MemoryCheckpoint({n: lazy[n] for n in lazy}, name=part) if fits else lazy
        return self._opened[part]

    def model(self) -> Model:
        return build(self._folders["base"])

    def references(self, model: Model) -> tuple[Evaluation, dict[str, Evaluation], dict[str, dict[str, float]]]:
        """The base on every task, each expert on its own, and the accuracy of every expert under every seen head.

        Writes ``predictions.npz``, which is what other evaluations take their normalised accuracies from. ``limit``
        caps the pictures a task of the last, an expert's own task aside.
        """
        experts = {t: self._evaluate(model, self.checkpoint(t), tasks=[t], unseen=False) for t in self.tasks}
        kept = {f"expert/{t}": experts[t].predictions[t] for t in self.tasks}
        self._keep(kept)
        base = self._evaluate(model, self.checkpoint("base"))
        self._keep({f"base/{t}": p for t, p in base.predictions.items()} | kept)
        cross = {}
        for t in self.tasks:
            others = self._evaluate(model, self.checkpoint(t), unseen=False, limit=self.limit)
            cross[t] = {name: score.accuracy for name, score in others.tasks.items()}
            cross[t][t] = experts[t].tasks[t].accuracy
        return self._named(base, "base"), {t: self._named(_itself(e), t) for t, e in experts.items()}, cross

    def _keep(self, predictions: Mapping[str, Any]) -> None:
        arrays = {k: p.numpy().astype(np.uint8 if int(p.max()) < 256 else np.uint16) for k, p in predictions.items()}
        np.savez_compressed(self.folder / "predictions.npz", **arrays)  # type: ignore[arg-type]

    def merge(self, model: Model, candidate: Candidate) -> dict[str, Any]:
        """Choose the coefficient on validation, then measure on test: an entry of ``evaluations.merges``."""
        curve = [(value, self._seen(model, candidate, {"lambda": value}, "val")) for value in candidate.grid]
        chosen = {"lambda": max(curve, key=lambda pair: pair[1])[0]} if curve else {}
        evaluations = [
            self._evaluate(model, self._merged(candidate, chosen, seed), what=candidate.title)
            for seed in candidate.seeds
        ]
        recipe = self._recipe(candidate, chosen, candidate.seeds[0])
        entry: dict[str, Any] = {
            "title": candidate.title,
            "recipe": recipe.to_dict(),
            "evaluation": replace(evaluations[0], source=f"merge:{recipe.hash[:12]}").to_dict(),
            "tuned": "untuned" if not curve else "validation",
            "validation": [{"lambda": value, "seen": seen} for value, seen in curve],
        }
        if len(candidate.seeds) > 1:
            seen = [e.seen.accuracy for e in evaluations]
            entry["seeds"] = [{"seed": s, "seen": a} for s, a in zip(candidate.seeds, seen, strict=True)]
        return entry

    def oracle(self, model: Model, candidate: Candidate) -> list[dict[str, float]]:
        """Test accuracy at every coefficient: for showing only, nothing may be chosen by it."""
        return [
            {"lambda": value, "seen": self._seen(model, candidate, {"lambda": value}, "test")}
            for value in candidate.grid
        ]

    def samples(self, model: Model, merge: Mapping[str, Any], count: int = 2) -> list[dict[str, Any]]:
        """A few test pictures with the probabilities that the base, the expert and ``merge`` give them."""
        import torch

        from ..tasks import heads_for

        recipe = Recipe.from_dict(merge["recipe"])
        merged = merge_to_memory(plan_recipe(recipe, load=self._load))
        heads, out = heads_for(self.suite), []
        states = {"base": self.checkpoint("base"), "merged": merged}
        for name in self.tasks:
            task = self.suite[name]
            images, labels = task.split("test")
            for index in range(min(count, len(labels))):
                entry: dict[str, Any] = {"task": name, "index": index, "label": int(labels[index])}
                for who, state in (*states.items(), ("expert", self.checkpoint(name))):
                    features = model.encode(images[index : index + 1], weights=model.prepare(state))
                    shares = torch.softmax(heads[name].logits(features)[0], -1)
                    entry[who] = [round(float(p), 4) for p in shares]
                out.append(entry)
        return out

    def _seen(self, model: Model, candidate: Candidate, chosen: Mapping[str, float], split: str) -> float:
        merged = self._merged(candidate, chosen, candidate.seeds[0])
        found = self._evaluate(model, merged, split=split, unseen=False, what=candidate.title)
        return float(found.seen.accuracy or 0.0)

    def _merged(self, candidate: Candidate, chosen: Mapping[str, float], seed: int) -> Mapping[str, Any]:
        if self.stop is not None:
            self.stop.check()
        recipe = self._recipe(candidate, chosen, seed)
        if candidate.method not in self._plans:
            self._plans[candidate.method] = plan_recipe(recipe, load=self._load)
        made = self._plans[candidate.method].with_parameters(dict(recipe.parameters), seed=seed)
        return merge_to_memory(made, stop=self.stop)

    def _recipe(self, candidate: Candidate, chosen: Mapping[str, float], seed: int) -> Recipe:
        return Recipe(
            merge_method=candidate.method,
            models=tuple(ModelEntry(f"zoo:{self.name}/{task}") for task in self.tasks),
            base_model=f"zoo:{self.name}/base",
            parameters={**candidate.parameters, **chosen},
            seed=seed,
            suite=self.name,
            title=candidate.title,
        )

    def _load(self, source: str, **_: Any) -> Checkpoint:
        return self.checkpoint(source.rpartition("/")[2])

    def _named(self, found: Evaluation, part: str) -> Evaluation:
        return replace(found, source=f"zoo:{self.name}/{part}")

    def _evaluate(
        self,
        model: Model,
        state: Mapping[str, Any],
        *,
        split: str = "test",
        tasks: Sequence[str] | None = None,
        unseen: bool = True,
        limit: int | None = None,
        what: str = "the references",
    ) -> Evaluation:
        report(self.progress, self._done, self._steps, f"measuring {what}")
        self._done += 1
        limit = self.limit if split == "val" else limit
        return evaluate(
            model, self.suite, split=split, tasks=tasks, unseen=unseen, state=state, limit=limit, seed=self.seed,
            stop=self.stop,
        )  # fmt: skip


def _itself(found: Evaluation) -> Evaluation:
    """An expert's evaluation on its own task, whose ratio to the expert is 1."""
    tasks = {name: replace(score, normalised=1.0) for name, score in found.tasks.items()}
    return replace(found, tasks=tasks, seen=replace(found.seen, normalised=1.0))


def measure(
    folder: Path,
    name: str,
    candidates: Sequence[Candidate] = CANDIDATES,
    *,
    seed: int = 0,
    limit: int | None = None,
    oracle: bool = False,
    extra: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> dict[str, Any]:
    """Measure the zoo in ``folder`` and write ``predictions.npz`` and ``measured.json``; returns what the latter holds.

    ``name`` is what the zoo is called once in place: recipes name its models ``zoo:NAME/TASK``.
    ``limit`` caps the validation pictures a task; the test split is always measured whole. ``oracle`` also measures
    task arithmetic on test at every coefficient, to show only. ``extra`` is added as it is.
    """
    started = time.perf_counter()
    tasks = len(read_json(folder / "zoo.json")["experts"])
    candidates = candidates if tasks > 1 else ()
    steps = 1 + 2 * tasks + sum(len(c.grid) + len(c.seeds) for c in candidates)
    steps += sum(len(c.grid) for c in candidates if oracle and c.method == "task_arithmetic")
    work = Measure(folder, name, seed=seed, steps=steps, limit=limit, progress=progress, stop=stop)
    model = work.model()
    base, experts, cross = work.references(model)
    merges, curve, samples = [], [], []
    for candidate in candidates:
        merges.append(work.merge(model, candidate))
        if candidate.method == "task_arithmetic":
            curve = work.oracle(model, candidate) if oracle else []
            samples = work.samples(model, merges[-1])
    found = {
        "evaluations": {
            "base": base.to_dict(),
            "experts": {t: e.to_dict() for t, e in experts.items()},
            "merges": merges,
        },
        "cross": cross,
        "cross_limit": limit,
        "oracle": {"what": "test accuracy of task arithmetic at every coefficient; chooses nothing", "seen": curve},
        "samples": samples,
        "seconds": round(time.perf_counter() - started, 1),
        **(extra or {}),
    }
    write_json(folder / "measured.json", found)
    return found


def tuned(found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Method -> the parameters that validation chose, for ``zoo.json``."""
    return {
        merge["recipe"]["merge_method"]: merge["recipe"]["parameters"]
        for merge in found["evaluations"]["merges"]
        if merge["tuned"] == "validation"
    }
