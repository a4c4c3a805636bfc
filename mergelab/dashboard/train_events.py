"""What happens in the Train tab's form: its fields move each other, and say what a run would cost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from ..errors import Cancelled
from . import controls, drafts, train_facts, train_form, views
from .errors import sentence
from .jobs import Done
from .page import CHEAP, PRIVATE, Page, session_of

#: A cost is one timed step.
_COST: dict[str, Any] = {"concurrency_id": "training-cost", "concurrency_limit": 4, "show_progress": "hidden"}


def wire(page: Page, out: dict[str, Any]) -> None:
    _wire_form(page, out)
    _wire_cost(page, out)


def data_line(start: str) -> str:
    """Which data a run looks at, as the other tabs say it."""
    badge = controls.data_badge({"data": f"labelled {'validation' if start == 'merge' else 'training'} images"})
    words = {
        "base": "Of the training split. Rounds are measured on test images, which change nothing.",
        "merge": "Of the validation split. Rounds are measured on test images, which change nothing.",
    }  # fmt: skip
    return f'<p class="ml-cost">{badge} {words[start]}</p>'


# ---- the form --------------------------------------------------------------------------------------------------------


def _wire_form(page: Page, out: dict[str, Any]) -> None:
    fields = [out[name] for name in train_form.FIELDS]
    slider = [out["every"], out["note"]]

    def kind(what: str) -> Any:
        return gr.update(info=train_form.KINDS[what][1]), gr.update(visible=what == "atm"), gr.update(
            interactive=what != "joint"
        )  # fmt: skip

    def follow_fields(*given: Any) -> Any:
        """The slider after the fields: as many positions as the budget has ways of being shared out."""
        values = dict(zip(train_form.FIELDS, given, strict=True))
        found = train_form.notches(values)
        if not found:
            return views.skip(2)
        return _slider(found, train_form.place_of(values, found), values["scale"])

    def move(place: float, *given: Any) -> Any:
        """The fields after the slider: another sharing out of the same budget."""
        values = dict(zip(train_form.FIELDS, given, strict=True))
        found = train_form.notches(values)
        if not found:
            return views.skip(5)
        notch = found[max(0, min(int(place), len(found) - 1))]
        return [notch.rounds, notch.unit, notch.length, *_slider(found, int(place), values["scale"])]

    def tasks(selection: dict[str, Any], chosen: list[str]) -> Any:
        """Other models, other tasks."""
        known = page.tasks(selection)
        names = [name for _, name in known]
        kept = [name for name in chosen if name in names]
        return gr.update(choices=known, value=kept or names[:3])

    out["what"].input(kind, out["what"], [out["what"], out["merging"], out["joint"]], **CHEAP, **PRIVATE)
    out["start"].input(data_line, out["start"], out["data"], **CHEAP, **PRIVATE)
    gr.on(
        [out["rounds"].input, out["length"].input, out["unit"].input, out["optimiser"].input, out["images"].release,
         out["batch"].release, out["scale"].release],
        follow_fields, fields, slider, trigger_mode="always_last", **CHEAP, **PRIVATE,
    )  # fmt: skip
    out["shared"] = out["every"].release(
        move, [out["every"], *fields], [out["rounds"], out["unit"], out["length"], *slider],
        trigger_mode="always_last", **CHEAP, **PRIVATE,
    )  # fmt: skip
    page.selection.change(tasks, [page.selection, out["tasks"]], out["tasks"], **CHEAP, **PRIVATE)


def _slider(found: list[train_form.Notch], place: int, scale: Any) -> list[Any]:
    place = max(0, min(place, len(found) - 1))
    label = f"Merge {found[place].words}"
    update = gr.update(maximum=max(1, len(found) - 1), value=place, label=label, interactive=len(found) > 1)
    return [update, views.note(train_form.merge_note(found, place, scale))]


# ---- what it would cost ----------------------------------------------------------------------------------------------


def asked(page: Page, given: tuple[Any, ...], draft: drafts.Draft, selection: dict[str, Any]) -> tuple[Any, Any]:
    """The recipe and what stands beside it, checked."""
    values = dict(zip(train_form.FIELDS, given, strict=True))
    merge = page.recipe(draft, selection) if values["start"] == "merge" else None
    if merge is not None:
        page.lab.check_sources(merge)
    recipe = train_form.recipe_of(values, selection, merge, page.settings.per_task)
    beside = train_form.beside(values)
    train_form.check_limit(recipe, beside, page.settings)
    return recipe, beside


def _wire_cost(page: Page, out: dict[str, Any]) -> None:
    fields = [out[name] for name in train_form.FIELDS]

    def cost_of_training(priced: Any, draft: drafts.Draft, selection: dict[str, Any], request: gr.Request, *given: Any
             ) -> Iterator[Any]:  # fmt: skip
        """Samples, time and bytes, from one timed step; once for the same fields."""
        try:
            recipe, beside = asked(page, given, draft, selection)
            key = [recipe.hash, list(beside)]
            if key == priced:
                yield views.skip(2)
                return

            def work(_progress: Any, stop: Any) -> Any:
                stop.check()
                return page.lab.training(selection).estimate(recipe, beside)

            yield [views.note("Looking at what it would cost …"), gr.skip()]
            for item in page.jobs.run(f"training-cost-{session_of(request)}", work):
                if isinstance(item, Done):
                    yield [train_facts.cost_line(item.value, beside), key]
        except Cancelled:
            yield views.skip(2)
        except Exception as error:
            yield [views.note(sentence(error), "error"), None]

    reasons = [
        component.release if isinstance(component, gr.Slider) else component.input
        for component in (out[name] for name in train_form.FIELDS if name not in ("method", "scale", "parameters"))
    ]
    given, told = [out["priced"], page.draft, page.selection, *fields], [out["cost"], out["priced"]]
    gr.on([out["tab"].select, *reasons], cost_of_training, given, told, trigger_mode="always_last", **_COST, **PRIVATE)
    out["shared"].then(cost_of_training, given, told, **_COST, **PRIVATE)
