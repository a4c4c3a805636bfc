"""Merging and measuring one point of a grid: on a bench, or by a function of the caller's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from .. import methods
from ..engine import merge_to_memory, plan_recipe
from ..engine.adapters import as_weights
from ..engine.plan import Plan
from ..errors import TaskError
from ..progress import Stop
from ..recipe import Recipe
from ..tasks import evaluate, load_suite
from . import collected
from .bench import Bench
from .trained import planned, prepare

if TYPE_CHECKING:
    from torch import Tensor

State: TypeAlias = "Mapping[str, Tensor]"
#: A function of one's own that measures merged weights on validation data: task -> accuracy from 0 to 1.
Measure: TypeAlias = Callable[[State], Mapping[str, float]]


class Judge:
    """Merges, and measures by a function of the caller's."""

    device = "auto"
    suite: str | None = None

    def __init__(self, measure: Measure | None, statistics: Any, stop: Stop | None) -> None:
        self._measure, self.statistics, self.stop = measure, statistics, stop
        self.items: dict[str, int] = {}
        self.warnings: dict[str, None] = {}

    def plan(self, recipe: Recipe) -> Plan:
        return self.noted(plan_recipe(recipe, statistics=self.statistics))

    def noted(self, plan: Plan) -> Plan:
        """The plan; what a person should know about its statistics is kept."""
        self.warnings.update(dict.fromkeys(plan.warnings))
        return plan

    def merged(self, recipe: Recipe) -> State:
        method = methods.get(recipe.merge_method)
        if method.collects:
            plan = self.noted(collected.prepare(recipe, stop=self.stop))
        else:
            plan = planned(recipe, prepare(recipe, stop=self.stop)) if method.learns else self.plan(recipe)
        return as_weights(plan, merge_to_memory(plan, stop=self.stop))

    def measure(self, state: State) -> Mapping[str, float]:
        assert self._measure is not None
        found = self._measure(state)
        if not isinstance(found, Mapping) or not found:
            raise TaskError("The validation function must give {task: accuracy}, with at least one task.")
        return found


class OnBench(Judge):
    """Resident checkpoints, and a suite that measures. What a method learns from is the recipe's own suite, where it
    names one: what is chosen is then what merging the recipe gives."""

    def __init__(
        self,
        bench: Bench,
        recipe: Recipe,
        statistics: Any,
        *,
        split: str,
        limit: int | None,
        tasks: Sequence[str] | None,
        stop: Stop | None,
    ) -> None:
        super().__init__(None, statistics, stop)
        self.bench, self.split, self.limit = bench, split, limit
        self.model = bench.model()
        assert bench.suite is not None  # the model is there only with a suite
        self.device, self.suite = bench.device, bench.suite.name
        self.learns_from = load_suite(recipe.suite) if recipe.suite else bench.suite
        if tasks is None:
            seen = [task.name for task in bench.suite if task.seen]
            tasks = [name for name in seen if name in recipe.names] or seen or bench.suite.names
        self.tasks = tuple(task.name for task in bench.suite.pick(tasks))

    def plan(self, recipe: Recipe) -> Plan:
        if self.statistics is None:
            return self.noted(self.bench.plan(recipe))
        loader = self.bench.loader(recipe)
        return self.noted(plan_recipe(recipe.replace(out_dtype=None), load=loader, statistics=self.statistics))

    def merged(self, recipe: Recipe) -> State:
        method = methods.get(recipe.merge_method)
        if method.learns:
            load = self.bench._load
            learned = prepare(recipe, suite=self.learns_from, load=load, model=self.model, stop=self.stop)
            plan = planned(recipe.replace(out_dtype=None), learned, load=load)
        elif method.collects:
            plan = collected.prepare(
                recipe.replace(out_dtype=None), suite=self.learns_from, load=self.bench._load, model=self.model,
                stop=self.stop,
            )  # fmt: skip
        elif self.statistics is None:
            if method.kind == "matched":
                self.plan(recipe)  # for what it says; the bench keeps its plans
            return self.bench.merged(recipe, stop=self.stop)
        else:
            plan = self.plan(recipe)
        return as_weights(self.noted(plan), merge_to_memory(plan, device=self.device, stop=self.stop))

    def measure(self, state: State) -> Mapping[str, float]:
        assert self.bench.suite is not None
        found = evaluate(
            self.model, self.bench.suite, split=self.split, limit=self.limit, tasks=self.tasks, state=state,
            stop=self.stop,
        )  # fmt: skip
        self.items.update({name: score.n for name, score in found.tasks.items()})
        return {name: score.accuracy for name, score in found.tasks.items()}
