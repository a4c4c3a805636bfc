"""The page's verbs for programs: ``gradio_client`` and plain HTTP. Typed functions over plain values."""

from __future__ import annotations

import base64
import binascii
import uuid
from collections.abc import Callable
from typing import Any

import gradio as gr

from ..errors import MergeLabError
from ..recipe import Recipe
from . import drafts, recipes
from .errors import spoken
from .jobs import Done
from .page import COMPUTE, Page
from .work import predict as predict_picture
from .work import result_of

_MOST_PICTURE_BYTES = 5_000_000


def build(page: Page, selection: dict[str, Any]) -> None:
    """Register ``/methods``, ``/preflight``, ``/merge_evaluate``, ``/predict`` and ``/geometry``."""

    def methods() -> list[dict]:
        """List the merging methods with their parameters, ranges, defaults, formulas and papers."""
        return [dict(method) for method in page.methods.values()]

    def preflight(recipe: str) -> dict:
        """Check from headers only whether a recipe can run.

        Args:
            recipe: the recipe as YAML or JSON text.
        """
        with spoken():
            return page.lab.preflight(_recipe(page, recipe))

    def merge_evaluate(recipe: str, per_task: int = page.settings.per_task) -> dict:
        """Merge in memory and measure on the zoo's tasks; accuracies are between 0 and 1.

        Args:
            recipe: the recipe as YAML or JSON text.
            per_task: test images a task; 0 for the whole test sets and the unseen tasks.
        """
        with spoken():
            parsed = _recipe(page, recipe)
            if not isinstance(per_task, int) or isinstance(per_task, bool) or not 0 <= per_task <= 10_000:
                raise MergeLabError(f"per_task must be a whole number from 0 to 10000, not {per_task!r}.")
            method = page.methods[parsed.merge_method]
            chosen = selection_for(parsed, selection)
            result = run(
                page,
                lambda progress, stop: result_of(
                    page.lab,
                    chosen,
                    parsed,
                    method,
                    tuned=False,
                    per_task=per_task or None,
                    progress=progress,
                    stop=stop,
                ),
            )
            if result["evaluation"] is None:
                raise MergeLabError(
                    "The recipe's models have no suite, so there is nothing to measure: name a 'suite'."
                )
            return {**result["evaluation"], "recipe": result["recipe"], "hash": result["hash"], "per_task": per_task}

    def predict(recipe: str, task: str, sample: int = 0, image: str = "") -> dict:
        """Class probabilities of the base, the task's expert and the merged model for one picture.

        Args:
            recipe: the recipe as YAML or JSON text.
            task: the task whose head reads the picture, such as mnist.
            sample: which of the task's sample pictures, when no image is given.
            image: a PNG, JPEG or WebP file, base64-encoded.
        """
        with spoken():
            parsed = _recipe(page, recipe)
            picture: dict[str, Any] = {"task": task, "place": max(0, int(sample))}
            if image:
                picture = {"task": task, "pixels": page.lab.picture(decode(image))[0]}
            chosen = selection_for(parsed, selection)
            found = run(page, lambda progress, stop: predict_picture(page.lab, chosen, parsed, picture, progress, stop))
            if found is None:
                raise MergeLabError("The recipe's models have no suite, so there are no classes to predict.")
            models: dict[str, dict[str, float]] = {}
            for row in found["rows"]:
                models.setdefault(row["series"], {})[row["class"]] = row["probability"]
            return {"task": task, "truth": found["truth"], "models": models}

    def geometry() -> dict:
        """Cosines, norms and sign-conflict rates of the zoo's task vectors."""
        with spoken():
            return run(page, lambda progress, stop: page.lab.geometry(selection, progress, stop))

    quick: dict[str, Any] = {"concurrency_id": "cheap", "concurrency_limit": 16}
    _register(methods, quick)
    _register(preflight, quick)
    for verb in (merge_evaluate, predict, geometry):
        _register(verb, COMPUTE)


def _register(verb: Callable[..., Any], options: dict[str, Any]) -> None:
    text = (verb.__doc__ or "").strip().splitlines()[0]
    gr.api(verb, api_name=verb.__name__, api_description=text, **options)


def _recipe(page: Page, text: str) -> Recipe:
    if not isinstance(text, str):
        raise MergeLabError("Give the recipe as YAML or JSON text.")
    recipe = recipes.read(text)
    drafts.validate(recipe)
    page.lab.check_sources(recipe)
    return recipe


def selection_for(recipe: Recipe, zoo: dict[str, Any]) -> dict[str, Any]:
    """The zoo's bench when the recipe stays within the zoo, else one of its own."""
    inside = all(entry.model in zoo["experts"].values() for entry in recipe.models)
    if inside and recipe.base_model in (None, zoo["base"]) and recipe.suite in (None, zoo.get("zoo")):
        return zoo
    return drafts.selection_of(recipe)


def run(page: Page, work: Any) -> Any:
    """Run ``work(progress, stop)`` as a job to its end and give its value."""
    for item in page.jobs.run(f"api-{uuid.uuid4()}", work):
        if isinstance(item, Done):
            return item.value
    raise MergeLabError("The work ended without a result.")


def decode(text: str) -> bytes:
    """The bytes of a picture in base64, or an error in words."""
    data = text.partition(",")[2] if text.startswith("data:") else text
    if len(data) > _MOST_PICTURE_BYTES * 4 / 3:
        raise MergeLabError("The picture is larger than 5 MB.")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise MergeLabError("The image must be a file in base64.") from None
