"""What ``mats_claims.py`` measures, one function a question; each gives a plain mapping for JSON."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from claims_lab import mean, paired
from mats_lab import KINDS, Ground, joined, total_objective
from torch import Tensor

from mergelab.engine.adapters import as_weights
from mergelab.tasks import subset_indices
from mergelab.training.adamerging import learn
from mergelab.training.inputs import unlabelled
from mergelab.training.surgery import operate

#: Iterations that are tried from every init, and along the long path.
GRID = (0, 5, 10, 20)
LONG = (0, 1, 5, 10, 20, 30, 50, 75, 100)
ALPHAS = (0.5, 0.7, 0.9, 1.0)
LAMBDAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
COUNTS = (5, 10, 50, 100, 500, 1000)
INITS = ("average", "task_arithmetic", "ties", "fisher", "regmean")


class Bench:
    """What several questions share: the inits as recipes spell them, their weights and scores."""

    def __init__(self, ground: Ground, inits: Sequence[str] = INITS, counts: Sequence[int] = COUNTS) -> None:
        self.ground, self.counts = ground, tuple(counts)
        self.names = [name for name in inits if name != "regmean" or ground.space == "weights"]
        self._kept: dict[str, Any] = {}

    def keep(self, key: str, make: Callable[[], Any]) -> Any:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    @property
    def inits(self) -> dict[str, Any]:
        """The inits with coefficients chosen on validation items: the builder's, or tried here (RegMean's α)."""
        return {name: self.init(name) for name in self.names}

    def init(self, name: str) -> Any:
        if name == "average":
            return name
        if name == "regmean":
            return _spec(name, {"off_diagonal": self.alpha["chosen"]})
        return _spec(name, {}) if name == "fisher" else self.tuned(name)

    def tuned(self, method: str) -> dict[str, Any]:
        """A method with the λ that the zoo's builder chose on validation items, or for other models one tried here."""
        ground = self.ground
        if not ground.lab.tasks and ground.space == "weights":
            return _spec(method, ground.lab.zoo.tuned[method])
        return _spec(method, {"lambda": self.keep(method, lambda: self._best("lambda", LAMBDAS, method))["chosen"]})

    @property
    def alpha(self) -> dict[str, Any]:
        """RegMean's off-diagonal scaling, tried on validation items."""
        return self.keep("alpha", lambda: self._best("off_diagonal", ALPHAS, "regmean"))

    def _best(self, name: str, grid: Sequence[float], method: str) -> dict[str, Any]:
        shown, found = self.ground.chosen_on, {}
        for value in grid:
            right = self.ground.correct(self.ground.merged(method, {name: value}), shown)
            found[value] = mean(shown, right)
        return {"tried": found, "chosen": max(found, key=lambda value: (found[value], value))}


def inits(bench: Bench) -> dict[str, Any]:
    """MaTS from every init: accuracy and J along the grid; the iterations chosen on validation items."""
    ground, out = bench.ground, {}
    rights: dict[str, Tensor] = {}
    for name, init in bench.inits.items():
        started = time.process_time()
        _, shots = ground.solved(init, GRID)
        seconds = time.process_time() - started
        found = _along(bench, shots, GRID)
        best = _best(found)
        rights[name], rights[f"mats/{name}"] = found[GRID[0]]["right"], found[best]["right"]
        shots.close()
        out[name] = {
            "grid": {str(k): _plain(v) for k, v in found.items()}, "chosen": best, "seconds": seconds,
            "objective": total_objective(shots.log, GRID), "before": _plain(found[0]), "after": _plain(found[best]),
            "difference": paired(ground.test, found[best]["right"], found[0]["right"]),
        }  # fmt: skip
    after = {name: entry["after"] for name, entry in out.items()}
    champion = max(after, key=lambda name: after[name]["val"])
    ladder = [("average", "average"), ("fisher", "fisher"), ("regmean", "regmean"), ("MaTS", f"mats/{champion}")]
    ladder = [(name, key) for name, key in ladder if key in rights]  # RegMean knows no vectors
    return {
        "inits": out, "alpha": bench.alpha if ground.space == "weights" else None, "champion": champion,
        "ladder": {name: mean(ground.test, rights[key]) for name, key in ladder},
        "steps": {f"{high} - {low}": paired(ground.test, rights[b], rights[a])
                  for (low, a), (high, b) in pairwise(ladder)},
        "experts": mean(ground.test, ground.test.expert), "statistics_seconds": ground.seconds.get("statistics"),
        "examples": {t: len(ground.drawn(t)[0]) for t in ground.names},
    }  # fmt: skip


def path(bench: Bench) -> dict[str, Any]:
    """Accuracy and J along the whole path, from task arithmetic and from RegMean."""
    out = {}
    for name in ("task_arithmetic", "regmean"):
        if name not in bench.names:
            continue
        _, shots = bench.ground.solved(bench.init(name), LONG)
        found = _along(bench, shots, LONG)
        shots.close()
        out[name] = {
            "iterations": list(LONG), "objective": total_objective(shots.log, LONG), "chosen": _best(found),
            "val": [found[k]["val"] for k in LONG], "test": [found[k]["test"] for k in LONG],
        }  # fmt: skip
    return out


def variants(bench: Bench) -> dict[str, Any]:
    """Other statistics and scalings of MaTS after 10 iterations from task arithmetic."""
    ground, init = bench.ground, bench.tuned("task_arithmetic")
    sets = {"empirical": ground.statistics}
    for fisher in ("sampled", "exact"):
        sets[fisher] = {t: ground.collected(t, "val", ground.drawn(t)[0], ["kfac"], fisher=fisher)
                        for t in ground.names}  # fmt: skip
    cases: list[tuple[str, str, dict[str, Any]]] = [(f, f, {}) for f in sets]
    cases += [("empirical, traces made equal", "empirical", {"normalize": "trace"}),
              ("exact, traces made equal", "exact", {"normalize": "trace"}),
              ("Gram objective", "empirical", {"objective": "gram"}),
              ("empirical, Kronecker preconditioner", "empirical", {"preconditioner": "kronecker", "damping": 1e-2}),
              ("empirical, damping 0.01", "empirical", {"damping": 1e-2})]  # fmt: skip
    out = {}
    for name, which, parameters in cases:
        _, shots = ground.solved(init, (0, 10), parameters, statistics=sets[which])
        out[name] = _plain(ground.score(shots.state(10)))
        shots.close()
    return out


def learned(bench: Bench) -> dict[str, Any]:
    """AdaMerging by layer and by task, task arithmetic, and Surgery on top of each."""
    ground = bench.ground
    tuned = bench.tuned("task_arithmetic")["parameters"]
    states: dict[str, Any] = {"task_arithmetic": ground.merged("task_arithmetic", tuned)}
    seconds, samples = {}, {}
    for per in ("task", "layer"):
        started = time.process_time()
        states[per], found = _adamerged(bench, per, None)
        seconds[per], samples[per] = time.process_time() - started, found.samples
    plain = {name: ground.score(state) for name, state in states.items()}
    out = {name: _plain(score) for name, score in plain.items()}
    for name, state in states.items():
        started = time.process_time()
        corrections = _operated(ground, state)
        seconds[f"surgery/{name}"] = time.process_time() - started
        score = ground.score(state, corrections)
        plain[f"surgery/{name}"] = score
        out[f"surgery/{name}"] = _plain(score)
    pairs = [("task", "task_arithmetic"), ("layer", "task"), ("layer", "task_arithmetic")]
    pairs += [(f"surgery/{name}", name) for name in states]
    return {
        "scores": out, "seconds": seconds, "samples": samples,
        "steps": {f"{a} - {b}": paired(ground.test, plain[a]["right"], plain[b]["right"]) for a, b in pairs},
    }  # fmt: skip


def examples(bench: Bench) -> dict[str, Any]:
    """Fisher, RegMean and MaTS (5 iterations from task arithmetic) with few and many training pictures a task."""
    ground, counts = bench.ground, bench.counts
    kinds = KINDS[ground.space]
    order = {t: _nested(ground, t, counts) for t in ground.names}
    parts: dict[str, Any] = {}
    out: dict[str, Any] = {}
    for i, count in enumerate(counts):
        for task, sets in order.items():
            if len(sets[i]):
                more = ground.collected(task, "train", sets[i], kinds)
                parts[task] = joined([parts[task], more]) if task in parts else more
        states: dict[str, Any] = {"fisher": ground.merged("fisher", statistics=parts)}
        if ground.space == "weights":
            states["regmean"] = ground.merged("regmean", {"off_diagonal": 0.9}, statistics=parts)
        _, shots = ground.solved(bench.tuned("task_arithmetic"), (5,), statistics=parts)
        states["mats"] = as_weights(shots.plan, shots.state(5))
        shots.close()
        out[str(count)] = {name: mean(ground.test, ground.correct(state)) for name, state in states.items()}
    return out


def few_unlabelled(bench: Bench) -> dict[str, Any]:
    """AdaMerging by layer with few validation pictures a task and no labels; no task has many more than 100."""
    ground, counts = bench.ground, [n for n in bench.counts if n <= 100]
    return {str(n): mean(ground.test, ground.correct(_adamerged(bench, "layer", n)[0])) for n in counts}


# ---- helpers --------------------------------------------------------------------------------------------------------


def _spec(method: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {"merge_method": method, "parameters": dict(parameters)}


def _along(bench: Bench, shots: Any, grid: Sequence[int]) -> dict[int, dict[str, Any]]:
    return {k: bench.ground.score(as_weights(shots.plan, shots.state(k))) for k in grid}


def _best(found: Mapping[int, Mapping[str, Any]]) -> int:
    """The iterations with the best validation accuracy; the fewest of equal ones."""
    return max(found, key=lambda k: (round(found[k]["val"], 9), -k))


def _adamerged(bench: Bench, per: str, count: int | None) -> tuple[Mapping[str, Tensor], Any]:
    ground = bench.ground
    lab = ground.lab
    made = ground.plan("adamerging", {"per": per})
    inputs = unlabelled(lab.model, lab.suite, ground.names, split="val", examples=count, seed=ground.seed)
    found = learn(lab.model, made, inputs)
    return ground.merged("adamerging", {"per": per}, learned=found.coefficients), found


def _operated(ground: Ground, state: Mapping[str, Tensor]) -> Any:
    lab = ground.lab
    inputs = unlabelled(lab.model, lab.suite, ground.names, split="val", seed=ground.seed)
    return operate(lab.model, state, lab.experts, inputs, weights_hash="").surgery.corrections


def _nested(ground: Ground, task: str, counts: Sequence[int]) -> list[Tensor]:
    """Places of training pictures: what each count adds to the one before it."""
    out, before = [], np.array([], dtype=np.int64)
    for count in counts:
        now = subset_indices(ground.lab.suite[task], "train", count, ground.seed).numpy()
        out.append(torch.from_numpy(np.setdiff1d(now, before)))
        before = now
    return out


def _plain(score: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in score.items() if name != "right"}
