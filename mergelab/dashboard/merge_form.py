"""The form of the Merge tab: made from the chosen method's declaration and from the experts on the bench."""

from __future__ import annotations

import html
import random
from typing import Any

import gradio as gr

from . import controls, data_panel, drafts, init_form
from .errors import spoken
from .page import CHEAP, PRIVATE, RENDER, Page, session_of


def build(page: Page, first: dict[str, Any]) -> dict[str, Any]:
    """Lay the form out: the method, its parameters, the experts. What a person changes goes into ``page.draft``.

    Gives the components of the Data panel, which stands among them.
    """
    name = first["draft"]["method"]
    with gr.Column(elem_id="merge-method", min_width=0):
        method = gr.Dropdown(
            controls.choices(page.methods), value=name, label="Merging method", elem_id="method", filterable=True
        )
        about = gr.HTML(_method_line(page, name), elem_id="method-about")
    panel = data_panel.build(first)
    with gr.Column(elem_id="merge-parameters", min_width=0):

        @gr.render(inputs=[page.form, page.selection], **RENDER)
        def parameters(form: drafts.Draft, selection: dict[str, Any]) -> None:
            _parameters(page, form, selection)

    with gr.Column(elem_id="merge-more", min_width=0):

        @gr.render(inputs=[page.form, page.selection], **RENDER)
        def experts(form: drafts.Draft, selection: dict[str, Any]) -> None:
            _experts(page, form, selection)

        with gr.Accordion("Formula and paper", open=False, elem_id="method-formula-box"):
            formula = gr.Markdown(
                controls.about(page.methods[name]), latex_delimiters=controls.LATEX, elem_id="method-formula"
            )

    def choose(name: str, old: drafts.Draft, selection: dict[str, Any], request: gr.Request) -> Any:
        with spoken():
            page.jobs.stop(session_of(request), superseded=True)
            return drafts.shown(drafts.fresh(page.methods[name], selection, old))

    def describe(form: drafts.Draft) -> Any:
        name = form["method"]
        return gr.update(value=name), _method_line(page, name), controls.about(page.methods[name])

    method.input(choose, [method, page.draft, page.selection], [page.form, page.draft], **CHEAP, **PRIVATE)
    page.form.change(describe, page.form, [method, about, formula], **CHEAP, **PRIVATE)
    return panel


def _method_line(page: Page, name: str) -> str:
    method = page.methods[name]
    return f'<p class="ml-lead">{html.escape(method["summary"])}</p><p>{controls.badges(method)}</p>'


def _parameters(page: Page, form: drafts.Draft, selection: dict[str, Any]) -> None:
    """The method's own controls; runs inside ``gr.render``."""
    method = page.methods[form["method"]]
    names, components = [], []
    first, more = init_form.arranged(method, form)

    def row(parameter: Any) -> None:
        names.append(parameter["name"])
        value = form["parameters"][parameter["name"]]
        components.append(controls.control(parameter, value, f"parameter-{parameter['name']}"))

    for parameter in first:
        row(parameter)
    if method.get("init"):
        init_form.build(page, form, selection)
    if more:
        with gr.Accordion(f"More parameters ({len(more)})", open=False, elem_id="more-parameters"):
            for parameter in more:
                row(parameter)
    if method.get("random"):
        names.append("seed")
        components.append(
            gr.Number(form.get("seed", 0), label="Seed", precision=0, minimum=0, elem_id="parameter-seed")
        )
    with gr.Row(elem_id="merge-buttons"):
        known = form["method"] in selection.get("tuned", {})
        reset = gr.Button("Tuned values" if known else "Defaults", size="sm", elem_id="reset", min_width=80)
        dice = gr.Button("New seed", size="sm", elem_id="dice", min_width=80, visible=bool(method.get("random")))

    def collect(draft: drafts.Draft, request: gr.Request, *values: Any) -> Any:
        with spoken():
            new = drafts.copied(draft)
            for name, value in zip(names, values, strict=True):
                if name == "seed":
                    new["seed"] = int(value or 0)
                elif value is not None:
                    new["parameters"][name] = value
            return _changed(page, draft, new, request)

    def start_over(request: gr.Request) -> Any:
        page.jobs.stop(session_of(request), superseded=True)
        return drafts.shown(drafts.fresh(method, selection))

    def roll(draft: drafts.Draft, request: gr.Request) -> Any:
        page.jobs.stop(session_of(request), superseded=True)
        new = drafts.copied(draft)
        new["seed"] = random.SystemRandom().randrange(1_000_000)
        return drafts.shown(new)

    for component in components:
        controls.listen(component)(
            collect, [page.draft, *components], page.draft, trigger_mode="always_last", **CHEAP, **PRIVATE
        )
    reset.click(start_over, None, [page.form, page.draft], **CHEAP, **PRIVATE)
    dice.click(roll, page.draft, [page.form, page.draft], **CHEAP, **PRIVATE)


def _changed(page: Page, old: drafts.Draft, new: drafts.Draft, request: gr.Request) -> Any:
    """The new draft, with the work on the old one ended; nothing at all where both are the same."""
    if new == old:
        return gr.skip()
    page.jobs.stop(session_of(request), superseded=True)
    return new


def _experts(page: Page, form: drafts.Draft, selection: dict[str, Any]) -> None:
    """One row per expert: take part or not, and its own coefficients; runs inside ``gr.render``."""
    method = page.methods[form["method"]]
    weight = next((p for p in method["parameters"] if p["name"] == "weight"), None)
    others = [p for p in method["parameters"] if p["per_model"] and p["name"] != "weight"]
    places: list[tuple[str, str]] = []
    components: list[Any] = []

    def row(index: int, name: str, parameter: Any | None, *, box: bool) -> None:
        model = form["models"][name]
        with gr.Row(elem_classes="ml-expert", equal_height=False):
            if box:
                places.append((name, "on"))
                components.append(
                    gr.Checkbox(
                        model["on"], label=name, container=False, interactive=True, scale=2, min_width=90,
                        elem_id=f"expert-{index}-on",
                    )
                )  # fmt: skip
            else:
                gr.HTML(f"<span>{html.escape(name)}</span>")
            if parameter:
                key = parameter["name"]
                value = model["parameters"].get(key, form["parameters"].get(key, parameter["default"]))
                places.append((name, key))
                components.append(
                    controls.control(parameter, value, f"expert-{index}-{key}", label=f"{key} of {name}", bare=True)
                )

    title = "Experts and their weights" if weight else "Experts"
    with gr.Accordion(f"{title} ({len(selection['experts'])})", open=True, elem_id="experts"):
        for index, name in enumerate(form["models"]):
            row(index, name, weight, box=True)
    split = []
    for parameter in others:
        key = parameter["name"]
        split.append(
            gr.Checkbox(
                key in form["split"], label=f"Set {key} for each expert", container=False, interactive=True,
                elem_id=f"split-{key}",
            )
        )  # fmt: skip
        if key in form["split"]:
            with gr.Accordion(f"{controls.label_of(key)} of each expert", open=True, elem_id=f"each-{key}"):
                for index, name in enumerate(form["models"]):
                    row(index, name, parameter, box=False)

    def collect(draft: drafts.Draft, request: gr.Request, *values: Any) -> Any:
        with spoken():
            new = drafts.copied(draft)
            for (name, key), value in zip(places, values, strict=True):
                if key == "on":
                    new["models"][name]["on"] = bool(value)
                elif value is not None:
                    new["models"][name]["parameters"][key] = value
            return _changed(page, draft, new, request)

    def separate(draft: drafts.Draft, request: gr.Request, *flags: bool) -> Any:
        with spoken():
            page.jobs.stop(session_of(request), superseded=True)
            new = drafts.copied(draft)
            return drafts.shown(
                drafts.separated(new, [p["name"] for p, flag in zip(others, flags, strict=True) if flag])
            )

    for component in components:
        controls.listen(component)(
            collect, [page.draft, *components], page.draft, trigger_mode="always_last", **CHEAP, **PRIVATE
        )
    for box in split:
        box.input(separate, [page.draft, *split], [page.form, page.draft], **CHEAP, **PRIVATE)
