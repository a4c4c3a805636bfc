"""The Merge tab: choose a method, move its coefficients, see at once what the merged model can still do."""

from __future__ import annotations

import html
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from ..errors import Cancelled, MergeLabError
from . import controls, drafts, recipes, views
from .errors import sentence, spoken
from .jobs import Done, Step, Superseded
from .page import CHEAP, COMPUTE, PRIVATE, REFINE, Page, busy, session_of


def build(page: Page, first: dict[str, Any]) -> dict[str, Any]:
    """Lay the tab out with what is shown first; gives the components that other tabs write to."""
    with gr.Row(elem_id="merge-row", equal_height=False):
        with gr.Column(scale=5, min_width=280, elem_id="merge-left"):
            _controls(page, first)
        with gr.Column(scale=15, min_width=320, elem_id="merge-view"):
            view = _view(page, first)
    out = view | _recipe(page, first)
    _wire(page, out, first)
    return out


_RADAR, _BARS = 340, 215  # pixels: radar, table and prediction fit one screen


# ---- layout -------------------------------------------------------------------------------------------------------------


def _controls(page: Page, first: dict[str, Any]) -> None:
    name = first["draft"]["method"]
    with gr.Column(elem_id="merge-method", min_width=0):
        method = gr.Dropdown(
            controls.choices(page.methods), value=name, label="Merging method", elem_id="method", filterable=True
        )
        about = gr.HTML(_method_line(page, name), elem_id="method-about")
    with gr.Column(elem_id="merge-parameters", min_width=0):

        @gr.render(inputs=[page.form, page.selection], show_progress="hidden", concurrency_limit=None)
        def parameters(form: drafts.Draft, selection: dict[str, Any]) -> None:
            _parameters(page, form, selection)

    with gr.Column(elem_id="merge-more", min_width=0):

        @gr.render(inputs=[page.form, page.selection], show_progress="hidden", concurrency_limit=None)
        def experts(form: drafts.Draft, selection: dict[str, Any]) -> None:
            _experts(page, form, selection)

        with gr.Accordion("Formula and paper", open=False, elem_id="method-formula-box"):
            formula = gr.Markdown(
                controls.about(page.methods[name]), latex_delimiters=controls.LATEX, elem_id="method-formula"
            )

    def choose(name: str, old: drafts.Draft, selection: dict[str, Any], request: gr.Request) -> Any:
        with spoken():
            page.jobs.stop(session_of(request), superseded=True)
            new = drafts.fresh(page.methods[name], selection, old)
            return new, drafts.copied(new)

    def describe(form: drafts.Draft) -> Any:
        name = form["method"]
        return gr.update(value=name), _method_line(page, name), controls.about(page.methods[name])

    method.input(choose, [method, page.draft, page.selection], [page.form, page.draft], **CHEAP, **PRIVATE)
    page.form.change(describe, page.form, [method, about, formula], **CHEAP, **PRIVATE)


def _method_line(page: Page, name: str) -> str:
    method = page.methods[name]
    return f'<p class="ml-lead">{html.escape(method["summary"])}</p><p>{controls.badges(method)}</p>'


def _parameters(page: Page, form: drafts.Draft, selection: dict[str, Any]) -> None:
    """The method's own controls; runs inside ``gr.render``."""
    method = page.methods[form["method"]]
    names, components = [], []
    declared = sorted(
        method["parameters"], key=lambda p: (p["type"] == "choice", p["type"] == "bool", p["name"] != "lambda")
    )
    for parameter in declared:
        name = parameter["name"]
        if name == "weight" or name in form["split"]:
            continue
        names.append(name)
        components.append(controls.control(parameter, form["parameters"][name], f"parameter-{name}"))
    if method.get("random"):
        names.append("seed")
        components.append(
            gr.Number(form.get("seed", 0), label="Seed", precision=0, minimum=0, elem_id="parameter-seed")
        )
    tuned = drafts.is_tuned(form, method, selection)
    with gr.Row(elem_id="merge-buttons"):
        known = form["method"] in selection.get("tuned", {})
        reset = gr.Button("Tuned values" if known else "Defaults", size="sm", elem_id="reset", min_width=80)
        dice = gr.Button("New seed", size="sm", elem_id="dice", min_width=80, visible=bool(method.get("random")))
    if tuned:
        gr.HTML(views.note("These values were tuned on validation data."), elem_id="tuned-note")

    def collect(draft: drafts.Draft, request: gr.Request, *values: Any) -> Any:
        with spoken():
            page.jobs.stop(session_of(request), superseded=True)
            new = drafts.copied(draft)
            for name, value in zip(names, values, strict=True):
                if name == "seed":
                    new["seed"] = int(value or 0)
                elif value is not None:
                    new["parameters"][name] = value
            return new

    def start_over(draft: drafts.Draft, request: gr.Request) -> Any:
        page.jobs.stop(session_of(request), superseded=True)
        new = drafts.fresh(method, selection)
        return new, drafts.copied(new)

    def roll(draft: drafts.Draft, request: gr.Request) -> Any:
        page.jobs.stop(session_of(request), superseded=True)
        new = drafts.copied(draft)
        new["seed"] = random.SystemRandom().randrange(1_000_000)
        return new, drafts.copied(new)

    for component in components:
        controls.listen(component)(
            collect, [page.draft, *components], page.draft, trigger_mode="always_last", **CHEAP, **PRIVATE
        )
    reset.click(start_over, page.draft, [page.form, page.draft], **CHEAP, **PRIVATE)
    dice.click(roll, page.draft, [page.form, page.draft], **CHEAP, **PRIVATE)


def _experts(page: Page, form: drafts.Draft, selection: dict[str, Any]) -> None:
    """One row per expert: take part or not, and its own coefficients; runs inside ``gr.render``."""
    method = page.methods[form["method"]]
    weight = next((p for p in method["parameters"] if p["name"] == "weight"), None)
    others = [p for p in method["parameters"] if p["per_model"] and p["name"] != "weight"]
    places: list[tuple[str, str]] = []
    components: list[Any] = []
    title = "Experts and their weights" if weight else "Experts"
    with gr.Accordion(f"{title} ({len(selection['experts'])})", open=True, elem_id="experts"):
        for index, (name, model) in enumerate(form["models"].items()):
            with gr.Row(elem_classes="ml-expert", equal_height=False):
                box = gr.Checkbox(
                    model["on"], label=name, container=False, interactive=True, scale=2, min_width=90, elem_id=f"expert-{index}-on"
                )  # fmt: skip
                places.append((name, "on"))
                components.append(box)
                for parameter in ([weight] if weight else []) + [p for p in others if p["name"] in form["split"]]:
                    key = parameter["name"]
                    value = model["parameters"].get(key, form["parameters"].get(key, parameter["default"]))
                    shown = controls.control(
                        parameter, value, f"expert-{index}-{key}", label=f"{key} of {name}", bare=True
                    )
                    places.append((name, key))
                    components.append(shown)
        split = [
            gr.Checkbox(
                p["name"] in form["split"], label=f"Set {p['name']} for each expert", container=False, interactive=True,
                elem_id=f"split-{p['name']}",
            )
            for p in others
        ]  # fmt: skip

    def collect(draft: drafts.Draft, request: gr.Request, *values: Any) -> Any:
        with spoken():
            page.jobs.stop(session_of(request), superseded=True)
            new = drafts.copied(draft)
            for (name, key), value in zip(places, values, strict=True):
                if key == "on":
                    new["models"][name]["on"] = bool(value)
                elif value is not None:
                    new["models"][name]["parameters"][key] = value
            return new

    def separate(draft: drafts.Draft, request: gr.Request, *flags: bool) -> Any:
        with spoken():
            page.jobs.stop(session_of(request), superseded=True)
            new = drafts.copied(draft)
            new["split"] = [p["name"] for p, flag in zip(others, flags, strict=True) if flag]
            return new, drafts.copied(new)

    for component in components:
        controls.listen(component)(
            collect, [page.draft, *components], page.draft, trigger_mode="always_last", **CHEAP, **PRIVATE
        )
    for box in split:
        box.input(separate, [page.draft, *split], [page.form, page.draft], **CHEAP, **PRIVATE)


def _view(page: Page, first: dict[str, Any]) -> dict[str, Any]:
    result, prediction = first["result"], first["prediction"]
    with gr.Row(elem_id="status-row", equal_height=False):
        status = gr.HTML(first["status"], elem_id="status")
        stop = gr.Button("Stop", size="sm", variant="stop", elem_id="stop", min_width=70, scale=0)
    text = gr.Markdown(views.sentence(result), elem_id="sentence")
    with gr.Row(elem_id="figures", equal_height=False):
        with gr.Column(scale=1, min_width=320):
            radar = gr.Plot(
                views.radar(result, height=_RADAR), label="Accuracy relative to each task's expert", show_label=False,
                elem_id="radar", container=False,
            )  # fmt: skip
        with gr.Column(scale=1, min_width=320, elem_id="table-column"):
            table = gr.HTML(views.main_table(result), elem_id="main-table")
    with gr.Row(elem_id="live-prediction", equal_height=False):
        with gr.Column(scale=1, min_width=150, elem_id="live-picture-column"):
            card = gr.HTML(views.picture_card(prediction), elem_id="live-picture")
            task = gr.Dropdown(
                first["tasks"],
                value=first["picture"]["task"],
                label="A picture from",
                elem_id="live-task",
                filterable=False,
            )
            another = gr.Button("Another picture", size="sm", elem_id="another")
        with gr.Column(scale=3, min_width=300):
            live = gr.Plot(
                views.prediction_plot(prediction, height=_BARS), label="What the models say", show_label=False,
                elem_id="live-plot", container=False,
            )  # fmt: skip
            said = gr.Markdown(views.prediction_sentence(prediction), elem_id="live-sentence")
    return {
        "status": status, "stop": stop, "sentence": text, "radar": radar, "table": table, "card": card, "task": task,
        "another": another, "live": live, "said": said,
    }  # fmt: skip


def _recipe(page: Page, first: dict[str, Any]) -> dict[str, Any]:
    recipe = first["recipe"]
    forms = recipes.forms(recipe)
    with gr.Row(elem_id="recipe-row", equal_height=False):
        with gr.Column(scale=7, min_width=320), gr.Accordion("Recipe", open=True, elem_id="recipe"):
            with gr.Tabs(elem_id="recipe-forms"):
                with gr.Tab("YAML", elem_id="recipe-yaml-tab"):
                    yaml = _code(forms["yaml"], "yaml", "recipe-yaml")
                with gr.Tab("JSON", elem_id="recipe-json-tab"):
                    data = _code(forms["json"], "json", "recipe-json")
                with gr.Tab("Command line", elem_id="recipe-shell-tab"):
                    shell = _code(forms["shell"], "shell", "recipe-shell")
                with gr.Tab("Python", elem_id="recipe-python-tab"):
                    python = _code(forms["python"], "python", "recipe-python")
            files = gr.HTML(recipes.files(recipe), elem_id="recipe-files")
        with gr.Column(scale=5, min_width=320):
            with gr.Accordion("Open a recipe", open=False, elem_id="open-recipe"):
                pasted = gr.Textbox(label="Paste YAML or JSON", lines=6, max_lines=12, elem_id="recipe-text")
                upload = gr.File(
                    label="or choose a file", file_types=[".yaml", ".yml", ".json"], elem_id="recipe-file", height=110
                )
                opened = gr.Button("Open", variant="primary", elem_id="recipe-open")
                said = gr.HTML("", elem_id="recipe-message")
            with gr.Accordion("Download the merged checkpoint", open=False, elem_id="download-box"):
                gr.HTML(
                    views.note("Merges from the original files, writes safetensors with its recipe, and packs a zip.")
                )
                make = gr.Button("Make the file", variant="primary", elem_id="make-download")
                making = gr.HTML("", elem_id="download-status")
                ready = gr.DownloadButton("Download", visible=False, elem_id="download")
    return {
        "forms": [yaml, data, shell, python, files], "pasted": pasted, "upload": upload, "open": opened,
        "message": said, "make": make, "making": making, "ready": ready,
    }  # fmt: skip


def _code(value: str, language: Any, elem_id: str) -> gr.Code:
    return gr.Code(
        value, language=language, interactive=False, lines=3, max_lines=16, show_label=False, elem_id=elem_id,
        buttons=["copy"], wrap_lines=True, show_line_numbers=False, container=False,
    )  # fmt: skip


# ---- behaviour ----------------------------------------------------------------------------------------------------------


def _wire(page: Page, out: dict[str, Any], first: dict[str, Any]) -> None:
    view = [out["status"], out["radar"], out["table"], out["sentence"], page.result, page.prediction]

    def quick(
        draft: drafts.Draft,
        selection: dict[str, Any],
        picture: dict[str, Any],
        old: views.Result | None,
        request: gr.Request,
    ) -> Iterator[Any]:
        """Merge in memory and measure a subset; the status line tells how far it is."""
        yield from _show(page, draft, selection, picture, old, page.settings.per_task, request)

    def refine(
        draft: drafts.Draft, selection: dict[str, Any], result: views.Result | None, request: gr.Request
    ) -> Iterator[Any]:
        """Measure what is shown on the whole test sets; ends at once when something newer is on its way."""
        if not result or result.get("evaluation") is None or result["per_task"] is None:
            return
        try:
            current = page.recipe(draft, selection).hash
        except MergeLabError:
            return
        if current == result["hash"]:
            yield from _show(page, draft, selection, None, result, None, request)

    def recipe_forms(draft: drafts.Draft, selection: dict[str, Any]) -> list[Any]:
        try:
            recipe = page.recipe(draft, selection)
        except MergeLabError as error:
            return [gr.skip(), gr.skip(), gr.skip(), gr.skip(), views.note(str(error), "error")]
        return [*recipes.forms(recipe).values(), recipes.files(recipe)]

    def stop(request: gr.Request) -> str:
        count = page.jobs.stop(session_of(request))
        return gr.skip() if count else views.status("Nothing is running.")

    if first["result"] is None:  # nothing was shipped: measure when a visitor arrives
        page.first_visit.append((quick, [page.draft, page.selection, page.picture, page.result], view))
    page.draft.change(recipe_forms, [page.draft, page.selection], out["forms"], **CHEAP, **PRIVATE)
    page.draft.change(
        quick, [page.draft, page.selection, page.picture, page.result], view, trigger_mode="always_last",
        show_progress="hidden", **COMPUTE, **PRIVATE,
    ).then(
        refine, [page.draft, page.selection, page.result], view, show_progress="hidden", trigger_mode="always_last",
        **REFINE, **PRIVATE,
    )  # fmt: skip
    out["stop"].click(stop, None, out["status"], queue=False, show_progress="hidden", **PRIVATE)
    _wire_prediction(page, out)
    _wire_files(page, out)


def _show(
    page: Page, draft: drafts.Draft, selection: dict[str, Any], picture: dict[str, Any] | None, old: views.Result | None,
    per_task: int | None, request: gr.Request,
) -> Iterator[Any]:  # fmt: skip
    """Run the job and yield outputs for the view: status while it runs, everything when it is done."""
    what = "" if per_task is not None else "Refining on the whole test sets:"
    try:
        for item in page.live(session_of(request), draft, selection, picture, per_task=per_task):
            if isinstance(item, Step):
                first = views.result_status(old) if per_task is None else ""
                yield [first + busy(item, what), *views.skip(5)]
            elif isinstance(item, Done):
                result, prediction = item.value
                extra = "Refining on the whole test sets …" if per_task is not None else ""
                yield [
                    views.result_status(result, extra), views.radar(result, height=_RADAR), views.main_table(result),
                    views.sentence(result), result, prediction if prediction else gr.skip(),
                ]  # fmt: skip
    except Superseded:
        return
    except Cancelled:
        yield [views.result_status(old, "Stopped; these numbers are the last ones that were measured."), *views.skip(5)]
    except Exception as error:
        yield [views.status(sentence(error), "error"), *views.skip(5)]


def _wire_prediction(page: Page, out: dict[str, Any]) -> None:
    def pick(task: str, picture: dict[str, Any]) -> dict[str, Any]:
        return {"task": task, "place": 0}

    def next_one(task: str, picture: dict[str, Any]) -> dict[str, Any]:
        same = picture.get("task") == task and picture.get("pixels") is None
        return {"task": task, "place": picture.get("place", 0) + 1 if same else 0}

    out["task"].input(pick, [out["task"], page.picture], page.picture, **CHEAP, **PRIVATE)
    out["another"].click(next_one, [out["task"], page.picture], page.picture, **CHEAP, **PRIVATE)


def _wire_files(page: Page, out: dict[str, Any]) -> None:
    def open_recipe(pasted: str, path: str | None, selection: dict[str, Any], request: gr.Request) -> Any:
        """Show a recipe that was pasted or uploaded: in the form when it merges these models, else with its own."""
        try:
            text = Path(path).read_bytes()[: 64 * 1024 + 1].decode("utf-8", "replace") if path else (pasted or "")
            if not text.strip():
                raise MergeLabError("There is no recipe yet: paste one, or choose a file.")
            recipe = recipes.read(text)
            page.lab.check_sources(recipe)
            if recipe.merge_method not in page.methods:
                from ..methods import get

                get(recipe.merge_method)
            method = page.methods[recipe.merge_method]
            drafts.validate(recipe)
            draft = drafts.from_recipe(recipe, method, selection)
            if draft is None:
                selection = drafts.selection_of(recipe)
                draft = drafts.from_recipe(recipe, method, selection)
            page.jobs.stop(session_of(request), superseded=True)
            said = views.note(f"Opened: {recipe.title or method['title']}, {len(recipe.models)} models.")
            return said, selection, draft, drafts.copied(draft)
        except Exception as error:
            return views.note(sentence(error), "error"), *views.skip(3)

    def make(draft: drafts.Draft, selection: dict[str, Any], request: gr.Request) -> Iterator[Any]:
        """Write the merged checkpoint and offer it."""
        try:
            recipe = page.recipe(draft, selection)
            page.lab.check_sources(recipe)
            page.lab.check_size(recipe)

            def work(progress: Any, stop: Any) -> Any:
                return page.lab.open(selection).export(recipe, folder=page.settings.temp, progress=progress, stop=stop)

            for item in page.jobs.run(session_of(request), work):
                if isinstance(item, Step):
                    yield busy(item, "Merging:"), gr.update(visible=False)
                elif isinstance(item, Done):
                    size = item.value.stat().st_size / 1e6
                    said = views.status(f"Ready: {item.value.name}, {size:.0f} MB, made in {item.seconds:.0f} s.")
                    yield said, gr.update(value=str(item.value), visible=True, label=f"Download {item.value.name}")
        except Cancelled:
            yield views.status("Stopped. Nothing was written."), gr.update(visible=False)
        except Exception as error:
            yield views.status(sentence(error), "error"), gr.update(visible=False)

    out["open"].click(
        open_recipe, [out["pasted"], out["upload"], page.selection],
        [out["message"], page.selection, page.form, page.draft], **CHEAP, **PRIVATE,
    )  # fmt: skip
    out["make"].click(
        make, [page.draft, page.selection], [out["making"], out["ready"]], show_progress="hidden", **COMPUTE, **PRIVATE
    )
