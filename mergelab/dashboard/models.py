"""The Models tab: what is merged. The starter zoo, folders on this machine, or checkpoints on the Hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gradio as gr

from ..errors import Cancelled, MergeLabError
from . import drafts, views
from .errors import sentence
from .jobs import Done, Step
from .model_views import basket_list, card, findings, hub_table, inside_card, plain
from .page import CHEAP, COMPUTE, PRIVATE, Page, busy, session_of
from .selections import hub_selection, local_selection

HEAVY: dict[str, Any] = {"show_progress": "hidden", **COMPUTE, **PRIVATE}


def build(page: Page, first: dict[str, Any]) -> None:
    """Lay the tab out and say what its buttons do."""
    chosen = gr.HTML(card(first["selection"], page.titles(first["selection"])), elem_id="models-card")
    with gr.Tabs(elem_id="models-from"):
        with gr.Tab("Zoo", elem_id="from-zoo"):
            zoo = gr.Dropdown(
                page.lab.zoos(), value=page.settings.zoo, label="A base with its experts and their tasks", elem_id="zoo"
            )
            use_zoo = gr.Button("Use this zoo", variant="primary", elem_id="use-zoo")
        with gr.Tab("This machine", elem_id="from-folder"):
            use_local, fields = _local_fields(page)
        with gr.Tab("Hugging Face Hub", elem_id="from-hub"):
            use_hub, wanted = _hub_fields(page)
    said = gr.HTML("", elem_id="models-status")
    verdict = gr.HTML("", elem_id="preflight")
    outs = [said, verdict, page.selection, page.form, page.draft]
    use_zoo.click(_user(page, page.lab.zoo), zoo, outs, **HEAVY)
    use_local.click(
        _user(page, lambda base, lines, suite: local_selection(base, lines, suite, page.settings.public)),
        fields,
        outs,
        **HEAVY,
    )
    use_hub.click(_user(page, hub_selection), wanted, outs, **HEAVY)

    def show(selection: dict[str, Any]) -> str:
        return card(selection, page.titles(selection))

    page.selection.change(show, page.selection, chosen, **CHEAP, **PRIVATE)


def _local_fields(page: Page) -> tuple[gr.Button, list[Any]]:
    local = not page.settings.public
    text = "A checkpoint is a safetensors file or a folder (Hugging Face, OpenCLIP or a PEFT adapter)."
    if not local:
        text = "This is a public page, so folders of its machine cannot be opened. Run MergeLab on your own for that."
    gr.HTML(views.note(text), elem_id="local-note")
    base = gr.Textbox(label="Base", placeholder="/path/to/base", elem_id="local-base", visible=local)
    experts = gr.Textbox(
        label="Experts, one a line", placeholder="/path/to/expert\nname = /path/to/another", lines=4,
        elem_id="local-experts", visible=local,
    )  # fmt: skip
    suite = gr.Textbox(
        label="Suite to measure on (optional)", placeholder="starter, or a folder of .npz tasks", elem_id="local-suite",
        visible=local,
    )  # fmt: skip
    return gr.Button("Check and use", variant="primary", elem_id="use-local", visible=local), [base, experts, suite]


def _hub_fields(page: Page) -> tuple[gr.Button, list[Any]]:
    found = gr.State([])  # models of the last search, as plain values
    wanted = gr.State([])  # experts collected so far
    gr.HTML(views.note("Nothing is sent to the Hub until you press a button here. Searching downloads no weights."))
    with gr.Row(equal_height=False, elem_classes="ml-ends"):
        base = gr.Textbox(
            "openai/clip-vit-base-patch32", label="Fine-tuned from (base)", elem_id="hub-base", min_width=240
        )
        query = gr.Textbox(label="Name contains (optional)", elem_id="hub-query", min_width=200)
        search = gr.Button("Search the Hub", variant="primary", elem_id="hub-search", min_width=150, scale=0)
    listing = gr.HTML("", elem_id="hub-results")
    with gr.Row(equal_height=False, elem_classes="ml-ends"):
        pick = gr.Dropdown(
            [], label="A checkpoint (from the list, or type org/name)", allow_custom_value=True, elem_id="hub-pick"
        )
        look = gr.Button("Look inside", elem_id="hub-inspect", min_width=120, scale=0)
        add = gr.Button("Add as expert", elem_id="hub-add", min_width=120, scale=0)
    inside = gr.HTML("", elem_id="hub-inside")
    basket = gr.HTML("", elem_id="hub-basket")
    with gr.Row():
        use = gr.Button("Check and use these", variant="primary", elem_id="use-hub")
        empty = gr.Button("Start over", elem_id="hub-empty")

    def look_up(base: str, query: str) -> Any:
        try:
            models = [plain(model) for model in page.lab.search(base.strip() or None, query.strip() or None)]
        except Exception as error:
            return views.note(sentence(error), "error"), gr.skip(), gr.skip()
        if not models:
            return views.note("The Hub knows no such checkpoint with safetensors weights."), [], gr.update(choices=[])
        repos = [model["repo"] for model in models]
        return hub_table(models), models, gr.update(choices=repos, value=repos[0])

    def inspect(repo: str) -> str:
        try:
            return inside_card(page.lab.inspect((repo or "").strip()))
        except Exception as error:
            return views.note(sentence(error), "error")

    def add_one(repo: str, models: list[dict[str, Any]], wanted: list[dict[str, str]]) -> Any:
        repo = (repo or "").strip()
        if not repo:
            return wanted, views.note("Pick a checkpoint first.", "error")
        if len(wanted) >= page.settings.max_models:
            return wanted, views.note(f"This page merges at most {page.settings.max_models} models.", "error")
        source = next((m["source"] for m in models if m["repo"] == repo), f"hub:{repo}")
        if all(item["source"] != source for item in wanted):
            wanted = [*wanted, {"repo": repo, "source": source}]
        return wanted, basket_list(wanted)

    slow = {**CHEAP, "show_progress": "minimal", **PRIVATE}
    search.click(look_up, [base, query], [listing, found, pick], **slow)
    look.click(inspect, pick, inside, **slow)
    add.click(add_one, [pick, found, wanted], [wanted, basket], **CHEAP, **PRIVATE)
    empty.click(lambda: ([], ""), None, [wanted, basket], **CHEAP, **PRIVATE)
    return use, [base, wanted]


def _user(page: Page, select: Callable[..., dict[str, Any]]) -> Callable[..., Iterator[Any]]:
    """A handler that makes a selection from its inputs, checks it from headers only, and puts it on the bench."""

    def use(request: gr.Request, *inputs: Any) -> Iterator[Any]:
        try:
            yield from _take(page, select(*inputs), session_of(request))
        except Cancelled:
            yield [views.status("Stopped."), *views.skip(4)]
        except Exception as error:
            yield [views.status(sentence(error), "error"), "", *views.skip(3)]

    return use


def _take(page: Page, selection: Mapping[str, Any], session: str) -> Iterator[Any]:
    method = page.methods["task_arithmetic" if "task_arithmetic" in page.methods else next(iter(page.methods))]
    page.lab.check_sources(page.recipe(drafts.fresh(method, selection), selection))

    def work(progress: Any, _stop: Any) -> Any:
        progress(0, 0, "reading headers")
        pinned = page.lab.pinned(selection)
        draft = drafts.fresh(method, pinned)
        return pinned, draft, page.lab.preflight(page.recipe(draft, pinned))

    for item in page.jobs.run(session, work):
        if isinstance(item, Step):
            yield [busy(item), *views.skip(4)]
        elif isinstance(item, Done):
            pinned, draft, report = item.value
            if not report["ok"]:
                text = views.status("These models cannot be merged as they are; see below what to do.", "error")
                yield [text, findings(report), *views.skip(3)]
                return
            size, most = (report.get("bytes_out") or 0) / 1e9, page.settings.max_download_gb
            if page.settings.public and size > most:
                raise MergeLabError(
                    f"These models take {size:.1f} GB each; this public page takes at most {most:g} GB."
                )
            text = views.status(f"On the bench: {pinned['title']}. The Merge tab now works on these models.")
            yield [text, findings(report), dict(pinned), *drafts.shown(draft)]
