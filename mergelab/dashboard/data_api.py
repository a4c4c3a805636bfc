"""Verbs for programs, of methods that need data: /collect_statistics, /solve_path, /learn, /surgery and
/calibrate."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..errors import MergeLabError
from ..recipe import Recipe
from . import api
from .calibrating import settings_of, usual_settings
from .data_panel import wished
from .errors import spoken
from .page import Page

_SPLITS = ("val", "test")


def build(page: Page, selection: dict[str, Any]) -> None:
    """Register the verbs; ``selection`` is the zoo that recipes without models of their own belong to."""
    usual = usual_settings()

    def collect_statistics(
        recipe: str, examples: int = 64, split: str = "val", fisher: str = "empirical", only_cost: bool = False
    ) -> dict:
        """Collect what a recipe's method needs to know of its tasks; name the result in its `statistics`.

        Args:
            recipe: the recipe as YAML or JSON text.
            examples: images a task, from 10 to 1000.
            split: val, or test (then the result is transductive).
            fisher: empirical, sampled or exact labels, where gradients are needed.
            only_cost: say what it would take (bytes, seconds) and collect nothing.
        """
        with spoken():
            parsed, chosen = _read(page, recipe, selection)
            from ..runs.matched import Wish

            wish = Wish(parsed.names, wished(examples), _split(split), fisher, parsed.seed)

            def work(progress: Any, stop: Any) -> Any:
                data = page.lab.data(chosen)
                return data.estimate(parsed, wish) if only_cost else data.collect(parsed, wish, progress, stop)

            return api.run(page, work)

    def solve_path(recipe: str, iterations: int = 100, per_task: int = page.settings.per_task) -> dict:
        """Solve once and measure every snapshot on validation: objective and accuracy by iteration, the chosen one.

        Args:
            recipe: a recipe of mats with its `statistics`, as YAML or JSON text.
            iterations: the most iterations, from 1 to 1000.
            per_task: validation images a task.
        """
        with spoken():
            parsed, chosen = _read(page, recipe, selection)
            if "iterations" not in {p["name"] for p in page.methods[parsed.merge_method]["parameters"]}:
                raise MergeLabError(f"The method {parsed.merge_method!r} has no iterations, so no path; use 'mats'.")
            most = _whole("iterations", iterations, 1, 1000)
            limit = _whole("per_task", per_task, 1, 10_000)
            return api.run(page, lambda progress, stop: page.lab.data(chosen).path(parsed, most, limit, progress, stop))

    def learn(recipe: str) -> dict:
        """Learn the coefficients of an adamerging recipe, once; merging it afterwards uses them.

        Args:
            recipe: the recipe as YAML or JSON text; its parameters say from how many images of which split.
        """
        with spoken():
            parsed, chosen = _read(page, recipe, selection)
            if not page.methods[parsed.merge_method].get("learns"):
                raise MergeLabError(f"The method {parsed.merge_method!r} learns nothing; merge it as it is.")
            return api.run(page, lambda progress, stop: page.lab.data(chosen).learn(parsed, progress, stop))

    def surgery(recipe: str, examples: int = 128, rank: int = 16, split: str = "val") -> dict:
        """Fit Representation Surgery on top of any recipe's merge: distances and accuracies before and after.

        The corrected model needs the task id at inference.

        Args:
            recipe: the recipe as YAML or JSON text.
            examples: unlabelled images a task, from 10 to 1000.
            rank: of each correction, from 1 to 256.
            split: val, or test (then the result is transductive).
        """
        with spoken():
            parsed, chosen = _read(page, recipe, selection)
            options: dict[str, Any] = {
                "examples": wished(examples), "rank": _whole("rank", rank, 1, 256), "split": _split(split),
                "per_task": page.settings.per_task,
            }  # fmt: skip

            def work(progress: Any, stop: Any) -> Any:
                return page.lab.data(chosen).surgery(parsed, progress=progress, stop=stop, **options)

            return {**api.run(page, work), "needs": "task id at inference"}

    def calibrate(  # noqa: PLR0917
        recipe: str, examples: int = 128, split: str = "val", ridge: float = usual.ridge,
        anchor: float = usual.anchor, teacher: float = usual.teacher,
    ) -> dict:  # fmt: skip
        """Calibrate the features of any recipe's merge (FeatCal): accuracies before and after, and what was fitted.

        No task id is needed at inference. `command` writes the same model from the merge in the folder `merged`.

        Args:
            recipe: the recipe as YAML or JSON text.
            examples: unlabelled images a task, from 10 to 1000.
            split: val, or test (then the result is transductive).
            ridge: the pull towards the anchor, 0 or more.
            anchor: where that is, from 0 (the base) over 1 (the merge) to 10.
            teacher: share of the expert's own features in what its layers are asked about, from 0 to 1.
        """
        with spoken():
            parsed, chosen = _read(page, recipe, selection)
            options: dict[str, Any] = {
                "examples": wished(examples), "split": _split(split), "per_task": page.settings.per_task,
                **settings_of(ridge, anchor, teacher),
            }  # fmt: skip

            def work(progress: Any, stop: Any) -> Any:
                return page.lab.data(chosen).calibrate(parsed, progress=progress, stop=stop, **options)

            return api.run(page, work)

    for verb in (collect_statistics, solve_path, learn, surgery, calibrate):
        text = (verb.__doc__ or "").strip().splitlines()[0]
        gr.api(verb, api_name=verb.__name__, api_description=text, concurrency_id="data", concurrency_limit=8)


def _read(page: Page, text: str, zoo: dict[str, Any]) -> tuple[Recipe, dict[str, Any]]:
    parsed = api._recipe(page, text)
    if parsed.merge_method not in page.methods:
        raise MergeLabError(f"The page does not offer {parsed.merge_method!r} yet; use python -m mergelab merge.")
    return parsed, api.selection_for(parsed, zoo)


def _split(split: str) -> str:
    if split not in _SPLITS:
        raise MergeLabError(f"The split must be one of {', '.join(_SPLITS)}, not {str(split)[:40]!r}.")
    return split


def _whole(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise MergeLabError(f"{name} must be a whole number from {low} to {high}, not {str(value)[:40]}.")
    return value
