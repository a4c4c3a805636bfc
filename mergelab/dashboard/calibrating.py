"""FeatCal on the Merge tab: the merge's layers fitted to its experts' features; accuracies before and after."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import gradio as gr

from ..errors import Cancelled, MergeLabError
from . import after_merge, calibrating_views, controls, drafts, recipes, views
from .data_panel import DATA, wished
from .errors import sentence
from .jobs import Done, Work
from .page import CHEAP, PRIVATE, Page, session_of

_KNOBS = ("ridge", "anchor", "teacher")
_VIEW = ("text", "bars", "table", "fitted", "skipped", "code", "files")
_OPTIONS: dict[str, Any] = {"interactive": True, "min_width": 220}


def build(_first: dict[str, Any]) -> dict[str, Any]:
    """The section below the tabs; closed until somebody wants it."""
    out: dict[str, Any] = {"found": gr.State(None), "opened": gr.State(False), "priced": gr.State(None)}
    title = "Calibrate this merge’s features (FeatCal)"
    with gr.Accordion(title, open=False, elem_id="calibration") as out["box"]:
        out["lead"] = gr.HTML(calibrating_views.lead(), elem_id="calibration-lead")
        with gr.Row(equal_height=False, elem_id="calibration-row"):
            out["examples"] = after_merge.examples_slider("calibration-examples")
            out["split"] = after_merge.split_radio("calibration-split")
        _knobs(out)
        out["cost"] = gr.HTML("", elem_id="calibration-cost")
        with gr.Row(equal_height=False, elem_id="calibration-buttons"):
            out["run"] = gr.Button("Calibrate", variant="primary", elem_id="calibration-run", min_width=170, scale=0)
            out["stop"] = gr.Button("Stop", variant="stop", elem_id="calibration-stop", min_width=70, scale=0)
        out["status"] = gr.HTML("", elem_id="calibration-status")
        with gr.Column(visible=False, elem_id="calibration-after") as out["after"]:
            _after(out)
    return out


def _knobs(out: dict[str, Any]) -> None:
    usual = usual_settings()
    with gr.Row(equal_height=False, elem_id="calibration-settings"):
        out["ridge"] = gr.Number(
            value=usual.ridge, minimum=0, label="Ridge", elem_id="calibration-ridge", **_OPTIONS,
            info="The pull towards the anchor: more keeps weights near it, less follows the pictures.",
        )  # fmt: skip
        out["anchor"] = gr.Slider(
            0, 10, value=usual.anchor, step=0.1, label="Anchor", elem_id="calibration-anchor", **_OPTIONS,
            info="Where that is: the base at 0, the merge at 1, beyond it above 1.",
        )  # fmt: skip
        out["teacher"] = gr.Slider(
            0, 1, value=usual.teacher, step=0.05, label="Teacher", elem_id="calibration-teacher", **_OPTIONS,
            info="Share of the expert’s own features, beside the merge’s, in what its layers are asked about.",
        )  # fmt: skip


def _after(out: dict[str, Any]) -> None:
    out["text"] = gr.Markdown("", elem_id="calibration-sentence")
    with gr.Row(equal_height=False):
        with gr.Column(min_width=320):
            gr.HTML(views.heading("Accuracy before and after"))
            out["bars"] = views.place("Accuracy of every task, before and after", "calibration-bars")
        with gr.Column(min_width=320):
            out["table"] = gr.HTML("", elem_id="calibration-table")
    out["fitted"] = gr.HTML("", elem_id="calibration-fitted")
    out["skipped"] = gr.HTML("", elem_id="calibration-skipped")
    gr.HTML(views.heading("The same model on disk, rounded to its files’ number format"))
    out["code"] = controls.code("", "shell", "calibration-shell")
    out["files"] = gr.HTML("", elem_id="calibration-files")


def wire(page: Page, out: dict[str, Any]) -> None:
    knobs = [out[name] for name in _KNOBS]
    _wire_cost(page, out)

    def fit(  # noqa: PLR0917
        draft: drafts.Draft, selection: dict[str, Any], examples: float, split: str, ridge: Any, anchor: Any,
        teacher: Any, request: gr.Request,
    ) -> Iterator[Any]:  # fmt: skip
        """Merge what the tab shows, fit its layers, measure before and after."""
        asked: dict[str, Any] = {}

        def start() -> Work:
            asked["recipe"] = recipe = page.recipe(draft, selection)
            count, settings = wished(examples), settings_of(ridge, anchor, teacher)
            page.lab.check_sources(recipe)
            return lambda progress, stop: page.lab.data(selection).calibrate(
                recipe, examples=count, split=split, per_task=page.settings.per_task, progress=progress, stop=stop,
                **settings,
            )  # fmt: skip

        def show(item: Done) -> list[Any]:
            recipe = asked["recipe"]
            found = {**item.value, "titles": page.titles(selection), "yaml": recipe.to_yaml()}
            found["shell"] = f"{recipes.merging(recipe)}\n{found['command']}"
            said = f"Calibrated and measured in {item.seconds:.0f} s. Data used: {found['data_used']}."
            return [views.status(said), found, gr.update(visible=True)]

        yield from after_merge.follow(page, request, start, show, what="Calibrating:", others=2)

    stale = after_merge.staleness(page, "The merge has changed since: these numbers are of the one before. Run again.")
    given = [page.draft, page.selection, out["examples"], out["split"], *knobs]
    out["run"].click(fit, given, [out["status"], out["found"], out["after"]], **DATA, **PRIVATE)
    out["stop"].click(
        after_merge.stopper(page), None, out["status"], queue=False, show_progress="hidden", **PRIVATE
    )  # fmt: skip
    out["found"].change(
        calibrating_views.found_view, out["found"], [out[name] for name in _VIEW], **CHEAP, **PRIVATE
    )  # fmt: skip
    page.draft.change(stale, [out["found"], page.draft, page.selection], out["status"], **CHEAP, **PRIVATE)
    out["split"].input(
        lambda split: calibrating_views.lead(transductive=split == "test"), out["split"], out["lead"], **CHEAP,
        **PRIVATE,
    )  # fmt: skip


def _wire_cost(page: Page, out: dict[str, Any]) -> None:
    def cost(  # noqa: PLR0917
        opened: bool, priced: Any, draft: drafts.Draft, selection: dict[str, Any], examples: float, split: str,
        request: gr.Request,
    ) -> Iterator[Any]:  # fmt: skip
        """What it would take, once somebody looks; a coefficient that moves does not change it."""
        if not opened:
            yield views.skip(2)
            return
        try:
            recipe, count = page.recipe(draft, selection), wished(examples)
            key = [selection["base"], [entry.model for entry in recipe.models], count, split]
            if key == priced:
                yield views.skip(2)
                return
            page.lab.check_sources(recipe)

            def work(_progress: Any, stop: Any) -> Any:
                stop.check()
                return page.lab.data(selection).calibration_cost(recipe, examples=count, split=split)

            for item in page.jobs.run(f"calibration-cost-{session_of(request)}", work):
                if isinstance(item, Done):
                    yield [calibrating_views.cost_line(item.value), key]
        except Cancelled:
            yield views.skip(2)
        except Exception as error:
            yield [views.note(sentence(error), "error"), None]

    out["box"].expand(lambda: True, None, out["opened"], **CHEAP, **PRIVATE)
    out["box"].collapse(lambda: False, None, out["opened"], **CHEAP, **PRIVATE)
    source = [out["opened"], out["priced"], page.draft, page.selection, out["examples"], out["split"]]
    reasons = [out["opened"].change, page.draft.change, out["examples"].release, out["examples"].input]
    gr.on(
        [*reasons, out["split"].input], cost, source, [out["cost"], out["priced"]], trigger_mode="always_last", **DATA,
        **PRIVATE,
    )  # fmt: skip


def usual_settings() -> Any:
    """The defaults of ridge, anchor and teacher."""
    from ..calibration.drift import DriftSettings

    return DriftSettings()


def settings_of(ridge: Any, anchor: Any, teacher: Any) -> dict[str, float]:
    """The three values as numbers; what range each has, the calibration itself says."""
    given = dict(zip(_KNOBS, (ridge, anchor, teacher), strict=True))
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise MergeLabError(f"{name} must be a number, not {str(value)[:20]!r}.")
    return {name: float(value) for name, value in given.items()}
