"""The Router tab's verbs for programs: ``/twin_build``, ``/twin_evaluate`` and ``/twin_predict``."""

from __future__ import annotations

import math
from typing import Any

import gradio as gr

from ..errors import MergeLabError
from . import api, drafts, router_work
from .errors import spoken
from .page import COMPUTE, Page


def build(page: Page, selection: dict[str, Any]) -> None:
    """Register the verbs; ``selection`` is the zoo that recipes without models of their own belong to."""

    def twin_build(recipe: str) -> dict:
        """Build a routed model and keep it at hand: its bytes, its router, the recipe with every value.

        Args:
            recipe: a routed recipe as YAML or JSON text: a recipe with sections exclusive, router and inference.
        """
        with spoken():
            built = _built(page, recipe, selection)
            return {
                **built["summary"], "recipe": built["twin"], "seconds": round(built["seconds"], 3),
                "data_used": built["summary"].get("data_used") or "task-index labels of held-out items",
                "router_notes": built["notes"],
            }  # fmt: skip

    def twin_evaluate(recipe: str, per_task: int = 40, mode: str = "auto", head: str = "router_argmax") -> dict:
        """Measure a routed model on the zoo's tasks: the contract of `evaluate --json` with the router's tables.

        Args:
            recipe: a routed recipe as YAML or JSON text.
            per_task: test images a task; 0 for the whole test sets and the unseen tasks.
            mode: auto, adapter, group, per_input, one_pass, or static (uniform weights).
            head: router_argmax, max_logit, or oracle (told the task).
        """
        with spoken():
            if not isinstance(per_task, int) or isinstance(per_task, bool) or not 0 <= per_task <= 10_000:
                raise MergeLabError(f"per_task must be a whole number from 0 to 10000, not {per_task!r}.")
            built = _built(page, recipe, selection)

            def work(progress: Any, stop: Any) -> Any:
                return router_work.measure(page.lab, built, head, mode, per_task or None, progress=progress, stop=stop)

            found = api.run(page, work)
            return {**found["evaluation"], "recipe": built["twin"], "hash": built["hash"], "per_task": per_task}

    def twin_predict(  # noqa: PLR0917
        recipe: str, task: str, sample: int = 0, image: str = "", weights: list[float] | None = None,
        normalise: bool = False, head: str = "router_argmax",
    ) -> dict:  # fmt: skip
        """The router's weights and the class probabilities of one picture, also under weights set by hand.

        Args:
            recipe: a routed recipe as YAML or JSON text.
            task: the task that the picture is from; only the oracle head is told.
            sample: which of the task's sample pictures, when no image is given.
            image: a PNG, JPEG or WebP file, base64-encoded.
            weights: one number an expert, in the recipe's order; none for the router's alone.
            normalise: divide the weights by their sum.
            head: router_argmax, max_logit, or oracle (told the task).
        """
        with spoken():
            picture: dict[str, Any] = {"task": task, "place": max(0, int(sample))}
            if image:
                picture = {"task": task, "pixels": page.lab.picture(api.decode(image))[0]}
            built = _built(page, recipe, selection)
            hand = {"weights": _checked(weights), "normalise": bool(normalise)} if weights else None
            found = api.run(page, lambda _progress, _stop: router_work.look(page.lab, built, picture, head, hand))
            models = {who: {row["class"]: row["probability"] for row in rows} for who, rows in found["models"].items()}
            weighed = {who: dict(zip(found["names"], row, strict=True)) for who, row in found["weights"].items()}
            return {
                "head": head,
                "read_by": found["task"],
                "truth": found["truth"],
                "weights": weighed,
                "models": models,
            }

    for verb in (twin_build, twin_evaluate, twin_predict):
        text = (verb.__doc__ or "").strip().splitlines()[0]
        gr.api(verb, api_name=verb.__name__, api_description=text, **COMPUTE)


def _built(page: Page, text: str, zoo: dict[str, Any]) -> dict[str, Any]:
    """The model of a recipe, built or from memory."""
    twin = router_work.read(text)
    drafts.validate(twin.shared)
    page.lab.check_sources(twin.shared)
    chosen = api.selection_for(twin.shared, zoo)

    def work(progress: Any, stop: Any) -> Any:
        return router_work.make(page.lab, chosen, twin.to_dict(), progress=progress, stop=stop)

    return api.run(page, work)


def _checked(weights: list[float]) -> list[float]:
    for weight in weights:
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
            raise MergeLabError(f"A weight must be a finite number, not {str(weight)[:40]!r}.")
    return [float(weight) for weight in weights]
