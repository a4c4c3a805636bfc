"""A data bench without weights: numbers by formula, for the pages of methods that need data."""

from __future__ import annotations

from mergelab.errors import DataNeededError
from mergelab.methods import get
from mergelab.runs.matched import kinds_for

NAME = "statistics-0123456789ab"
GRID = (0, 5, 10)


class FakeData:
    """Collected sets and learned recipes are remembered by what they were made from."""

    def __init__(self, bench):
        self.bench = bench
        self.kept: list[tuple] = []
        self.learned: set[str] = set()
        self.calls: list[str] = []

    def needs(self, recipe):
        return "learning" if get(recipe.merge_method).learns else "statistics" if kinds_for(recipe) else ""

    def used(self, recipe):
        return "10 labelled val images a task" if self.needs(recipe) else ""

    def merged(self, recipe, progress=None, stop=None):
        need = self.needs(recipe)
        if need == "learning" and recipe.hash not in self.learned:
            raise DataNeededError("The coefficients are not learned for these values yet: press Learn under “Data”.")
        if need == "statistics" and recipe.statistics is None:
            raise DataNeededError("This method needs statistics of every task first: press Collect under “Data”.")

    def estimate(self, recipe, wish):
        key = (kinds_for(recipe), wish)
        return {"bytes": 10_000_000 * len(wish.tasks), "seconds": 2.0 * len(wish.tasks), "timed": 8,
                "examples": dict.fromkeys(wish.tasks, wish.examples), "kept": NAME if key in self.kept else None,
                "kinds": list(kinds_for(recipe))}  # fmt: skip

    def collect(self, recipe, wish, progress=None, stop=None):
        self.calls.append("collect")
        self.bench._work(progress, stop)
        self.kept.append((kinds_for(recipe), wish))
        return self.about(NAME, wish)

    def about(self, name, wish=None):
        tasks = list(wish.tasks) if wish else ["mnist", "fashion"]
        examples = wish.examples if wish else 10
        return {"name": name, "tasks": tasks, "examples": [examples], "split": "val", "kinds": ["gram", "kfac"],
                "fisher": "empirical", "seed": 0, "asked": examples, "transductive": False,
                "text": f"{examples} labelled val images a task"}  # fmt: skip

    def path_seconds(self, recipe, most):
        return float(most)

    def path(self, recipe, most=100, limit=40, progress=None, stop=None):
        from mergelab.runs.solve_path import path_hash

        self.calls.append("path")
        accuracy = (0.5, 0.8, 0.7)
        points = [
            {"k": k, "objective": 4.0 / (1 + k), "residual": 1.0 / (1 + k), "accuracy": a,
             "tasks": {"mnist": a + 0.1, "fashion": a - 0.1}}
            for k, a in zip(GRID, accuracy, strict=True)
        ]  # fmt: skip
        return {"key": path_hash(recipe), "recipe": recipe.to_dict(), "grid": list(GRID), "points": points,
                "blocks": self.blocks(recipe), "best": 1, "split": "val", "limit": limit, "seconds": 1.0}  # fmt: skip

    def blocks(self, recipe, progress=None, stop=None):
        solved = [
            {"tensor": f"encoder.layer.{i}.{part}.weight", "shape": [4, 4], "by": "cg", "why": "", "stopped": "",
             "left": False, "change": [0.0, 0.1 * (i + 1), 0.2 * (i + 1)]}
            for i in range(2) for part in ("attention.q_proj", "mlp.fc1")
        ]  # fmt: skip
        left = [
            {"tensor": "norm.bias", "shape": [4], "by": "average", "why": "no linear layer <b>", "stopped": "",
             "left": True, "change": [0.0, 0.0, 0.0]},
            {"tensor": "pos", "shape": [4], "by": "experts", "why": "", "stopped": "experts equal", "left": False,
             "change": [0.0, 0.0, 0.0]},
        ]  # fmt: skip
        return [*solved, *left]

    def layers(self, names):
        from mergelab.analysis.layers import layers_of

        return layers_of(names)

    def learn(self, recipe, progress=None, stop=None):
        self.calls.append("learn")
        self.bench._work(progress, stop)
        self.learned.add(recipe.hash)
        return self.coefficients(recipe)

    def coefficients(self, recipe):
        if recipe.hash not in self.learned:
            return None
        history = [{"step": s, "values": [[0.3, 0.3 + s / 10], [0.3, 0.3 - s / 10]]} for s in (0, 1, 2)]
        return {"key": recipe.hash, "tasks": ["mnist", "fashion"], "layers": ["block 0", "block 1"], "history": history,
                "entropy": [[0.9, 0.8], [0.5, 0.1]], "confidence": [[0.5, 0.6], [0.7, 0.99]],
                "classes": {"mnist": {"first": 0.2, "last": 0.3}, "fashion": {"first": 0.3, "last": 0.97}},
                "findings": ["fashion: 97% of the last predictions are of one class."], "seconds": 3.0, "samples": 64,
                "data_used": "20 unlabelled val pictures a task", "transductive": False, "per": "layer",
                "split": "none"}  # fmt: skip

    def surgery(self, recipe, *, examples=256, rank=16, split="val", per_task=40, progress=None, stop=None):
        self.calls.append("surgery")
        tasks = ["mnist", "fashion"]
        bias = {"before": 1.0, "after": 0.2, "held_out": 64, "held_out_before": 1.1, "held_out_after": 0.5}
        clouds = {name: [[0.0, 1.0], [2.0, 3.0]] for name in ("merged", "expert", "corrected")}
        return {"hash": recipe.hash, "tasks": tasks, "rank": rank, "split": split,
                "examples": dict.fromkeys(tasks, examples), "bias": dict.fromkeys(tasks, bias),
                "accuracy": {t: {"n": per_task, "before": 0.6, "after": 0.7} for t in tasks},
                "projections": {t: {"explained": [0.3, 0.2], "points": clouds} for t in tasks},
                "data_used": "Representation Surgery on 40 unlabelled val pictures; task id needed at inference",
                "transductive": split == "test", "seconds": 1.0, "per_task": per_task}  # fmt: skip

    def calibration_cost(self, recipe, *, examples=256, split="val"):
        return {"seconds": 0.1 * examples * len(recipe.models), "pictures": examples * len(recipe.models),
                "tasks": len(recipe.models), "blocks": 2, "timed": 32}  # fmt: skip

    def calibrate(
        self, recipe, *, examples=256, split="val", ridge, anchor, teacher, per_task=40, progress=None, stop=None
    ):
        from mergelab.calibration.drift import DriftSettings

        DriftSettings(ridge=ridge, anchor=anchor, teacher=teacher)  # its ranges
        self.calls.append("calibrate")
        self.bench._work(progress, stop)
        tasks = ["mnist", "fashion"]
        scores = {
            task: {"n": per_task, "before": 0.6, "after": after, "before_interval": [0.5, 0.7],
                   "after_interval": [after - 0.1, after + 0.1]}
            for task, after in zip(tasks, (0.8, 0.55), strict=True)
        }  # fmt: skip
        marks = " (transductive: the split that results are measured on)" if split == "test" else ""
        return {"hash": recipe.hash, "tasks": tasks, "split": split, "examples": dict.fromkeys(tasks, examples),
                "settings": {"ridge": ridge, "anchor": anchor, "teacher": teacher}, "accuracy": scores,
                "blocks": ["layer.0", "layer.1"], "tensors": {"layer.0.fc.weight": 0.1, "layer.1.fc.weight": 0.3},
                "skipped": {"layer.0.in_proj": "fused <attention>"}, "transductive": split == "test",
                "data_used": f"{examples} unlabelled {split} pictures a task of mnist, fashion{marks}",
                "merge_used": self.used(recipe), "per_task": per_task, "seconds": 1.0,
                "command": "python -m mergelab calibrate merged --out calibrated --suite starter"}  # fmt: skip
