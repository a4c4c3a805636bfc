"""A lab without weights: numbers that follow from the recipe by a formula, so that a test knows what must be shown."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
from dashboard.fake_data import FakeData

from mergelab.dashboard.lab import Lab
from mergelab.errors import MergeLabError, TaskError
from mergelab.recipe import Recipe

TASKS = {"mnist": "MNIST", "fashion": "Fashion", "emoji": "Emoji", "shapes": "Shapes"}
CLASSES = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta")


def accuracy(recipe: Recipe | None, place: int) -> float:
    """Rises with λ to 0.9 at λ = 0.5 and falls again; the base has 0.2. Experts that are left out stay at the base."""
    if recipe is None:
        return 0.2
    scale = float(recipe.parameters.get("lambda", 0.4))
    return max(0.0, round(0.9 - abs(scale - 0.5) - 0.02 * place, 4))


class FakeEvaluation:
    def __init__(self, values, per_task, source):
        self.values, self.per_task, self.source = values, per_task, source

    def to_dict(self):
        n = self.per_task or 500
        spread = 0.1 if self.per_task else 0.02
        tasks = {
            name: {
                "seen": True,
                "n": n,
                "accuracy": value,
                "interval": [value - spread, value + spread],
                "normalised": value / 0.9,
            }
            for name, value in zip(TASKS, self.values, strict=True)
        }
        mean = sum(self.values) / len(self.values)
        unseen = {"accuracy": None, "normalised": None}
        if self.per_task is None:
            tasks["letters"] = {"seen": False, "n": n, "accuracy": 0.33, "interval": [0.3, 0.36], "normalised": None}
            unseen["accuracy"] = 0.33
        return {"suite": "starter", "source": self.source, "tasks": tasks,
                "seen": {"accuracy": mean, "normalised": mean / 0.9}, "unseen": unseen,
                "data_used": "none", "seconds": 0.1}  # fmt: skip


class FakeBench:
    def __init__(self, slow: float = 0.0):
        self.ready = False
        self.slow = slow
        self.suite = SimpleNamespace(
            name="starter",
            tasks=[SimpleNamespace(name=n, title=t) for n, t in [*TASKS.items(), ("letters", "Letters")]],
        )
        self.calls: list[tuple] = []

    def warm(self, progress=None, stop=None):
        self.ready = True

    def _work(self, progress, stop, steps=5):
        for step in range(steps):
            if stop is not None:
                stop.check()
            if progress is not None:
                progress(step, steps, f"step {step}")
            time.sleep(self.slow / steps)

    def evaluate(self, recipe, *, per_task=40, progress=None, stop=None):
        self.calls.append(("evaluate", per_task))
        self._work(progress, stop)
        bonus = 0.0 if per_task else 0.001
        return FakeEvaluation([accuracy(recipe, i) + bonus for i in range(len(TASKS))], per_task, "merged")

    def references(self, per_task=40):
        return {
            "base": FakeEvaluation([0.2] * 4, per_task, "base"),
            "experts": FakeEvaluation([0.9] * 4, per_task, "experts"),
        }

    def task(self, name):
        if name not in TASKS:
            raise TaskError(f"There is no task called {name!r} here.")
        return SimpleNamespace(classes=CLASSES)

    def samples(self, task, count=12, seed=0):
        self.task(task)
        return [(i, np.full((32, 32, 3), 20 * i, np.uint8), CLASSES[i % 6]) for i in range(count)]

    def predict(self, recipe, task, picture):
        self.task(task)
        assert picture.shape == (1, 32, 32, 3) and picture.dtype == np.uint8
        first = int(picture[0, 0, 0, 0]) // 20 % 6
        rows = {"base": np.full(6, 1 / 6), "expert": np.eye(6)[first], "merged": 0.7 * np.eye(6)[first] + 0.05}
        return [
            SimpleNamespace(model=name, classes=CLASSES, probabilities=tuple(float(x) for x in row), seconds=0.01)
            for name, row in rows.items()
        ]

    def export(self, recipe, *, folder=None, progress=None, stop=None):
        self._work(progress, stop)
        path = folder / "merge-x" / "merged.zip"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"PK")
        return path


class FakeRouted:
    """A routed bench by formula: accuracy rises with the rank; the router is right on 9 of 10."""

    def __init__(self, bench: FakeBench):
        self.bench = bench
        self.calls: list[tuple] = []

    def _size(self, recipe):
        rank = recipe.exclusive.rank if recipe.exclusive.rank is not None else 38
        return {"shared": 1000, "exclusive": 100 * rank, "router": 500, "heads": 10, "total": 1510 + 100 * rank}

    def estimate(self, recipe):
        return {"bytes": self._size(recipe)["total"] * 1000, "seconds": 20.0, "experts": len(recipe.experts)}

    def build(self, recipe, progress=None, stop=None):
        self.calls.append(("build", recipe.hash))
        self.bench._work(progress, stop)

    def summary(self, recipe):
        return {"hash": recipe.hash, "names": list(recipe.experts), "bytes": self._size(recipe), "router": "mlp",
                "rank": recipe.exclusive.rank or 0, "gate": recipe.gate.to_dict(),
                "router_data": dict.fromkeys(recipe.experts, 50), "router_notes": {"kind": "mlp"}}  # fmt: skip

    def evaluate(self, recipe, *, per_task=40, mode="auto", head="router_argmax", weights=None, progress=None,
                 stop=None):  # fmt: skip
        from mergelab.routing.recipe import HEADS, MODES

        if head not in HEADS or mode not in MODES:
            raise MergeLabError(f"There is no head {head!r} or mode {mode!r}.")
        self.calls.append(("evaluate", per_task, mode, head, weights))
        value = {"oracle": 0.88, "router_argmax": 0.8, "max_logit": 0.7}[head]
        found = FakeEvaluation([value] * len(TASKS), per_task, "routed").to_dict()
        names = list(recipe.experts)
        shares = {task: {e: 0.9 if e == task else 0.1 / (len(names) - 1) for e in names} for task in found["tasks"]}
        router = {"accuracy": 0.9, "confusion": shares, "weights": shares,
                  "entropy": dict.fromkeys(found["tasks"], 0.5), "when_right": 0.85, "when_wrong": 0.1}  # fmt: skip
        return {**found, "head": head, "mode": "adapter" if mode == "auto" else mode, "why": "it is cheapest.",
                "experts": names, "router": router, "data_used": f"task labels; head {head}"}  # fmt: skip

    def curve(self, recipe, progress=None, stop=None):
        self.calls.append(("curve", recipe.hash))
        points = []
        for place, rank in enumerate((0, 1, 2, 4, 8, None)):
            mean = 0.5 + 0.08 * place
            accuracy = {head: {"mean": mean, "tasks": dict.fromkeys(recipe.experts, mean)}
                        for head in ("oracle", "router_argmax", "max_logit")}  # fmt: skip
            size = {
                "shared": 10**7,
                "exclusive": 10**6 * place,
                "total": 10**7 + 10**6 * place,
            }
            points.append({"rank": rank, "bytes": size, "accuracy": accuracy, "mode": "adapter", "seconds": 0.1})
        return {"names": list(recipe.experts), "per_task": 20, "points": points}

    def predict(self, recipe, picture, *, weights=None, normalised=False, head="router_argmax", task=None):
        names = list(recipe.experts)
        rows = {"shared": [0.0] * len(names), "routed": [0.7] + [0.3 / (len(names) - 1)] * (len(names) - 1)}
        if weights is not None:
            if len(weights) != len(names):
                raise MergeLabError(f"Weights must be {len(names)} numbers, one a task.")
            total = sum(weights) if normalised and sum(weights) else 1.0
            rows["by hand"] = [w / total for w in weights]
        models = {who: [{"class": c, "probability": p} for c, p in zip(CLASSES, self._row(row), strict=True)]
                  for who, row in rows.items()}  # fmt: skip
        return {"names": names, "weights": rows, "head": head, "task": task if head == "oracle" else names[0],
                "models": models, "confidence": 0.7}  # fmt: skip

    def _row(self, weights):
        first = min(1.0, 0.1 + 0.5 * sum(weights))
        return [first] + [(1 - first) / (len(CLASSES) - 1)] * (len(CLASSES) - 1)

    def batch(self, recipe, *, count=24, seed=0, per_bin=1, head="router_argmax"):
        names = list(recipe.experts)
        items = [
            {"picture": np.zeros((32, 32, 3), np.uint8), "task": names[i % len(names)], "chosen": names[i % len(names)],
             "group": i % len(names), "weights": [float(j == i % len(names)) for j in range(len(names))],
             "label": "alpha", "predicted": "alpha" if i else "<b>beta</b>", "right": bool(i)}
            for i in range(count)
        ]  # fmt: skip
        return {"names": names, "items": items, "head": head,
                "groups": [[float(j == g) for j in range(len(names))] for g in range(len(names))]}  # fmt: skip

    def storage(self, recipe):
        names = list(recipe.experts)
        lines = {"static merge": [10**6] * len(names), "routed, as built": [2 * 10**6] * len(names),
                 "all experts kept": [10**6 * (i + 1) for i in range(len(names))]}  # fmt: skip
        return {"tasks": names, "lines": lines, "parts": self._size(recipe), "rank": 8, "bytes_a_number": 2}

    def latency(self, recipe, progress=None, stop=None):
        return {"sizes": [1, 8], "rows": {"plain": [0.01, 0.04], "adapter": [0.02, 0.05], "group": [0.05, None]},
                "why": {"group/8": "one batch would take about 9.0 s"}, "repeats": 3}  # fmt: skip


class FakeLab(Lab):
    """The real lab, with a fake zoo and bench in the place of weights."""

    def __init__(self, settings, slow: float = 0.0):
        super().__init__(settings)
        self.bench = FakeBench(slow)
        self.routed_bench = FakeRouted(self.bench)
        self.data_bench = FakeData(self.bench)

    def zoos(self):
        return ["starter"]

    def zoo(self, name):
        if name != "starter":
            raise MergeLabError(f"There is no zoo {name!r}.")
        return {"title": "Starter zoo", "zoo": "starter", "base": "zoo:starter/base",
                "experts": {task: f"zoo:starter/{task}" for task in TASKS}, "suite": "starter",
                "tuned": {"task_arithmetic": {"lambda": 0.4}}}  # fmt: skip

    def open(self, selection):
        return self.bench

    def routed(self, selection):
        return self.routed_bench

    def data(self, selection):
        return self.data_bench

    def first_screen(self):
        recipe = Recipe(
            "task_arithmetic", tuple(f"zoo:starter/{task}" for task in TASKS), base_model="zoo:starter/base",
            parameters={"lambda": 0.4}, suite="starter",
        )  # fmt: skip
        whole = self.bench.references(None)["experts"].to_dict()
        return SimpleNamespace(
            recipe=recipe,
            base=self.bench.references(None)["base"].to_dict(),
            experts={task: {"tasks": {task: whole["tasks"][task]}} for task in TASKS},
            merged=FakeEvaluation([accuracy(recipe, i) for i in range(4)], None, "merged").to_dict(),
            samples=(),
        )

    def preflight(self, recipe):
        bad = any("broken" in entry.model for entry in recipe.models)
        finding = {"level": "error", "text": "Tensor a.weight has another shape.", "fix": "Use another expert."}
        good = {"level": "ok", "text": "All tensors have the base's shapes.", "fix": ""}
        return {"ok": not bad, "findings": [finding if bad else good], "bytes_out": 28_000_000,
                "peak_memory": 10_000_000, "disk_free": 10**12, "seconds": 0.3, "tensors": 12}  # fmt: skip

    def geometry(self, selection, progress=None, stop=None):
        names = list(TASKS)
        matrix = [[1.0 if i == j else 0.1 * (i + j) for j in range(4)] for i in range(4)]
        return {"names": names, "layers": ["block 0", "block 1"],
                "cosine": {"whole model": matrix, "block 0": matrix, "block 1": matrix},
                "norms": {name: [1.0, 2.0] for name in names},
                "norm": dict.fromkeys(names, 2.24), "conflict": [0.4, 0.5], "conflict_whole": 0.45}  # fmt: skip
