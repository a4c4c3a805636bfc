"""What the dashboard asks of methods that need data, as plain values: costs, statistics, paths, coefficients, bias."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import TaskError
from ..progress import Progress, Stop
from ..recipe import Recipe
from . import data_plans, learnt, matched
from .merged_through import collect_through, through_folder
from .solve_path import GRID, merge_log, solve_path

if TYPE_CHECKING:
    from .bench import Bench


class DataBench:
    """Statistics, solver paths, learned coefficients and corrections over the experts of a bench."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def needs(self, recipe: Recipe) -> str:
        """``"statistics"``, ``"learning"``, ``"collecting"`` or ``""``."""
        return data_plans.needs(recipe)

    def used(self, recipe: Recipe) -> str:
        """In words, the data behind a recipe's merge; "" for none."""
        return data_plans.data_used(self.bench, recipe)

    def merged(self, recipe: Recipe, progress: Progress | None = None, stop: Stop | None = None) -> None:
        """Merge, so that measuring finds it done; the progress of a long solve shows."""
        self.bench.merged(recipe, progress=progress, stop=stop)

    # ---- statistics --------------------------------------------------------------------------------------------------

    def estimate(self, recipe: Recipe, wish: matched.Wish) -> dict[str, Any]:
        """See :func:`mergelab.runs.matched.estimate_for`."""
        if self.needs(recipe) != "collecting":
            return matched.estimate_for(self.bench, recipe, wish)
        folder = through_folder(self.bench, recipe)
        return matched.estimate_for(self.bench, recipe, wish, kept=folder if folder.is_dir() else None)

    def collect(
        self, recipe: Recipe, wish: matched.Wish, progress: Progress | None = None, stop: Stop | None = None
    ) -> dict[str, Any]:
        """Collect or find the statistics; what they are, see :func:`mergelab.runs.matched.about`."""
        if self.needs(recipe) == "collecting":
            return collect_through(self.bench, recipe, progress=progress, stop=stop)
        return self.about(matched.statistics_for(self.bench, recipe, wish, progress=progress, stop=stop))

    def about(self, name: str) -> dict[str, Any]:
        """What a set of statistics was made of."""
        return matched.about(name)

    # ---- solving -----------------------------------------------------------------------------------------------------

    def path_seconds(self, recipe: Recipe, most: int) -> float:
        """About how long solving up to ``most`` iterations takes, from shapes and the speed of an ordinary machine."""
        from ..engine.estimate import estimate
        from ..engine.workers import default_threads

        wanted = recipe.replace(parameters={**recipe.parameters, "iterations": most})
        return estimate(self.bench.plan(wanted), default_threads()).seconds

    def path(
        self, recipe: Recipe, most: int = 100, limit: int | None = 40, progress: Progress | None = None,
        stop: Stop | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """The path of a MaTS recipe up to ``most`` iterations; see :class:`mergelab.runs.solve_path.SolvePath`."""
        grid = sorted({*(k for k in GRID if k <= most), most})
        return solve_path(self.bench, recipe, grid, limit=limit, progress=progress, stop=stop).to_dict()

    def blocks(
        self, recipe: Recipe, progress: Progress | None = None, stop: Stop | None = None
    ) -> list[dict[str, Any]]:
        """What a matched merge wrote down about every tensor."""
        return merge_log(self.bench, recipe, progress=progress, stop=stop)

    def layers(self, names: Sequence[str]) -> dict[str, str]:
        """Tensor -> layer, in the layers' order."""
        from ..analysis.layers import layers_of

        return layers_of(names)

    # ---- learning ----------------------------------------------------------------------------------------------------

    def learn(self, recipe: Recipe, progress: Progress | None = None, stop: Stop | None = None) -> dict[str, Any]:
        """Learn the coefficients or find them kept; see :meth:`coefficients`."""
        learnt.learned_for(self.bench, recipe, progress=progress, stop=stop)
        found = self.coefficients(recipe)
        assert found is not None
        return found

    def coefficients(self, recipe: Recipe) -> dict[str, Any] | None:
        """How the kept coefficients were learned, or None: ``history`` is λ by record, task and layer.

        ``classes``: task -> share of the commonest class in the first and in the last predictions.
        """
        learned = learnt.kept_learned(self.bench, recipe) if self.needs(recipe) == "learning" else None
        if learned is None:
            return None
        layers = self.layers(learned.rows)
        columns = list(dict.fromkeys(layers[row] for row in layers)) if len(learned.rows) > 1 else list(learned.rows)
        places = {
            layer: [i for i, row in enumerate(learned.rows) if layers.get(row, row) == layer] for layer in columns
        }
        if len(learned.rows) == 1:
            places = {columns[0]: [0]}
        history = [
            {"step": step, "values": [[_mean([table[i][t] for i in places[layer]]) for layer in columns]
                                      for t in range(len(learned.models))]}
            for step, table in learned.history
        ]  # fmt: skip
        classes = {
            task: {end: max(counts) / max(1, sum(counts)) for end, counts in ends.items() if counts}
            for task, ends in learned.classes.items()
        }
        return {
            "key": recipe.hash, "tasks": list(learned.models), "layers": columns, "history": history,
            "entropy": [list(row) for row in learned.entropy],
            "confidence": [list(row) for row in learned.confidence], "classes": classes,
            "findings": list(learned.findings), "seconds": learned.seconds, "samples": learned.samples,
            "data_used": learned.data_used, "transductive": learned.transductive,
            "per": str(learned.settings.get("per")), "split": str(learned.settings.get("split")),
        }  # fmt: skip

    # ---- surgery -----------------------------------------------------------------------------------------------------

    def surgery(
        self, recipe: Recipe, *, examples: int = 256, rank: int = 16, split: str = "val", per_task: int | None = 40,
        progress: Progress | None = None, stop: Stop | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Correct the features of a recipe's merge towards its experts', and measure with the corrections.

        ``bias``: task -> before and after, on fitted and on held-out pictures; ``projections``: task -> three clouds;
        ``accuracy``: task -> before and after on ``per_task`` test pictures.
        """
        from ..checkpoints import MemoryCheckpoint
        from ..tasks import evaluate
        from ..training.inputs import known_heads
        from .surgery import SurgerySettings, operate_on

        bench, suite, model = self.bench, self.bench.suite, self.bench.model()
        assert suite is not None  # the model is there only with a suite
        tasks = [name for name in recipe.names if name in suite.names]
        if not tasks:
            raise TaskError(
                "None of the merged experts has a task of its name in the suite, so there is no bias to see."
            )
        state = bench.merged(recipe, stop=stop)
        merged = MemoryCheckpoint(dict(state), name="the merge", weights_hash=lambda: recipe.hash)
        made = operate_on(
            merged, suite, experts={task: bench._checkpoint(bench.experts[task]) for task in tasks}, tasks=tasks,
            split=split, examples=examples, settings=SurgerySettings(rank=rank), model=model, device=bench.device,
            progress=progress, stop=stop,
        )  # fmt: skip
        heads = made.surgery.heads(known_heads(model, suite, suite.pick(tasks)))
        options: Mapping[str, Any] = {"tasks": tasks, "state": state, "limit": per_task, "stop": stop}
        before = evaluate(model, suite, **options)
        after = evaluate(model, suite, heads=heads, **options)
        scores = {
            task: {"n": after.tasks[task].n, "before": before.tasks[task].accuracy, "after": after.tasks[task].accuracy}
            for task in tasks
        }
        return {
            "hash": recipe.hash, "tasks": tasks, "rank": rank, "split": split, "examples": dict(made.surgery.examples),
            "bias": {task: dict(found) for task, found in made.surgery.bias.items()}, "accuracy": scores,
            "projections": dict(made.projections), "data_used": made.surgery.data_used,
            "transductive": made.surgery.transductive, "seconds": made.surgery.seconds, "per_task": per_task,
        }  # fmt: skip

    # ---- calibration -------------------------------------------------------------------------------------------------

    def calibration_cost(self, recipe: Recipe, *, examples: int = 256, split: str = "val") -> dict[str, Any]:
        """See :func:`mergelab.runs.calibrated_bench.calibration_cost`."""
        from .calibrated_bench import calibration_cost

        return calibration_cost(self.bench, recipe, examples=examples, split=split)

    def calibrate(
        self, recipe: Recipe, *, examples: int = 256, split: str = "val", ridge: float, anchor: float, teacher: float,
        per_task: int | None = 40, progress: Progress | None = None, stop: Stop | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """See :func:`mergelab.runs.calibrated_bench.calibrate_merge`."""
        from .calibrated_bench import DriftSettings, calibrate_merge

        return calibrate_merge(
            self.bench, recipe, examples=examples, split=split, per_task=per_task, progress=progress, stop=stop,
            settings=DriftSettings(ridge=ridge, anchor=anchor, teacher=teacher),
        )  # fmt: skip


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
