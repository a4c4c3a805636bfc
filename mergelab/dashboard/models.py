"""The Models tab: what is merged. The starter zoo, folders on this machine, or checkpoints on the Hub."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from typing import Any

import gradio as gr

from ..errors import Cancelled, MergeLabError
from ..recipe import Recipe, readable_name
from . import drafts, views
from .errors import sentence
from .jobs import Done, Step
from .page import CHEAP, COMPUTE, PRIVATE, Page, busy, session_of

LEVELS = {"ok": ("green", "fits"), "warn": ("amber", "mind"), "error": ("red", "cannot run")}


def build(page: Page, first: dict[str, Any]) -> None:
    chosen = gr.HTML(card(page, first["selection"]), elem_id="models-card")
    found = gr.State([])  # Hub models of the last search, as plain values
    wanted = gr.State([])  # experts collected from the Hub
    with gr.Tabs(elem_id="models-from"):
        with gr.Tab("Zoo", elem_id="from-zoo"):
            zoo = gr.Dropdown(
                page.lab.zoos(), value=page.settings.zoo, label="A base with its experts and their tasks", elem_id="zoo"
            )
            use_zoo = gr.Button("Use this zoo", variant="primary", elem_id="use-zoo")
        with gr.Tab("This machine", elem_id="from-folder"):
            if page.settings.public:
                gr.HTML(views.note("This is a public page, so folders of its machine cannot be opened. Run MergeLab on your own machine for that."), elem_id="local-off")  # fmt: skip  # noqa: E501
            local = not page.settings.public
            gr.HTML(
                views.note(
                    "A checkpoint is a safetensors file or a folder (Hugging Face, OpenCLIP or a PEFT adapter)."
                ),
                visible=local,
            )
            base = gr.Textbox(label="Base", placeholder="/path/to/base", elem_id="local-base", visible=local)
            experts = gr.Textbox(
                label="Experts, one a line", placeholder="/path/to/expert\nname = /path/to/another", lines=4,
                elem_id="local-experts", visible=local,
            )  # fmt: skip
            suite = gr.Textbox(
                label="Suite to measure on (optional)", placeholder="starter, or a folder of .npz tasks",
                elem_id="local-suite", visible=local,
            )  # fmt: skip
            use_local = gr.Button("Check and use", variant="primary", elem_id="use-local", visible=local)
        with gr.Tab("Hugging Face Hub", elem_id="from-hub"):
            gr.HTML(
                views.note("Nothing is sent to the Hub until you press a button here. Searching downloads no weights.")
            )
            with gr.Row(equal_height=True):
                hub_base = gr.Textbox(
                    "openai/clip-vit-base-patch32", label="Fine-tuned from (base)", elem_id="hub-base", min_width=240
                )
                query = gr.Textbox(label="Name contains (optional)", elem_id="hub-query", min_width=200)
                search = gr.Button("Search the Hub", variant="primary", elem_id="hub-search", min_width=150, scale=0)
            listing = gr.HTML("", elem_id="hub-results")
            with gr.Row(equal_height=True):
                pick = gr.Dropdown(
                    [],
                    label="A checkpoint (from the list, or type org/name)",
                    allow_custom_value=True,
                    elem_id="hub-pick",
                )
                look = gr.Button("Look inside", elem_id="hub-inspect", min_width=120, scale=0)
                add = gr.Button("Add as expert", elem_id="hub-add", min_width=120, scale=0)
            inside = gr.HTML("", elem_id="hub-inside")
            basket = gr.HTML("", elem_id="hub-basket")
            with gr.Row():
                use_hub = gr.Button("Check and use these", variant="primary", elem_id="use-hub")
                empty = gr.Button("Start over", elem_id="hub-empty")
    said = gr.HTML("", elem_id="models-status")
    verdict = gr.HTML("", elem_id="preflight")
    outs = [said, verdict, chosen, page.selection, page.form, page.draft]

    def take(selection: Mapping[str, Any], request: gr.Request) -> Iterator[Any]:
        """Check a selection from headers only, and put it on the bench when it can run."""
        try:
            name = "task_arithmetic" if "task_arithmetic" in page.methods else next(iter(page.methods))
            draft = drafts.fresh(page.methods[name], selection)
            recipe = page.recipe(draft, selection)
            page.lab.check_sources(recipe)

            def work(progress: Any, stop: Any) -> Any:
                progress(0, 0, "reading headers")
                return page.lab.preflight(recipe)

            for item in page.jobs.run(session_of(request), work):
                if isinstance(item, Step):
                    yield [busy(item), *views.skip(5)]
                elif isinstance(item, Done):
                    report = item.value
                    if not report["ok"]:
                        text = views.status("These models cannot be merged as they are; see below what to do.", "error")
                        yield [text, findings(report), *views.skip(4)]
                    else:
                        text = views.status(
                            f"On the bench: {selection['title']}. The Merge tab now works on these models."
                        )
                        yield [
                            text,
                            findings(report),
                            card(page, selection),
                            dict(selection),
                            draft,
                            drafts.copied(draft),
                        ]
        except Cancelled:
            yield [views.status("Stopped."), *views.skip(5)]
        except Exception as error:
            yield [views.status(sentence(error), "error"), "", *views.skip(4)]

    def from_zoo(name: str, request: gr.Request) -> Iterator[Any]:
        try:
            selection = page.lab.zoo(name)
        except Exception as error:
            yield [views.status(sentence(error), "error"), "", *views.skip(4)]
            return
        yield from take(selection, request)

    def from_folder(base: str, lines: str, suite: str, request: gr.Request) -> Iterator[Any]:
        try:
            selection = local_selection(base, lines, suite, page.settings.public)
        except Exception as error:
            yield [views.status(sentence(error), "error"), "", *views.skip(4)]
            return
        yield from take(selection, request)

    def from_hub(base: str, wanted: list[dict[str, str]], request: gr.Request) -> Iterator[Any]:
        try:
            selection = hub_selection(base, wanted)
        except Exception as error:
            yield [views.status(sentence(error), "error"), "", *views.skip(4)]
            return
        yield from take(selection, request)

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

    page.selection.change(lambda s: card(page, s), page.selection, chosen, **CHEAP, **PRIVATE)
    heavy = {"show_progress": "hidden", **COMPUTE, **PRIVATE}
    use_zoo.click(from_zoo, zoo, outs, **heavy)
    use_local.click(from_folder, [base, experts, suite], outs, **heavy)
    use_hub.click(from_hub, [hub_base, wanted], outs, **heavy)
    slow = {**CHEAP, "show_progress": "minimal", **PRIVATE}
    search.click(look_up, [hub_base, query], [listing, found, pick], **slow)
    look.click(inspect, pick, inside, **slow)
    add.click(add_one, [pick, found, wanted], [wanted, basket], **CHEAP, **PRIVATE)
    empty.click(lambda: ([], ""), None, [wanted, basket], **CHEAP, **PRIVATE)


# ---- selections ---------------------------------------------------------------------------------------------------------


def local_selection(base: str, lines: str, suite: str, public: bool) -> dict[str, Any]:
    """A selection of folders on this machine; ``name = path`` gives an expert a name of its own."""
    if public:
        raise MergeLabError("This is a public page, so folders of its machine cannot be opened.")
    if not base.strip():
        raise MergeLabError("Say where the base is: the folder or file that the experts were fine-tuned from.")
    experts: dict[str, str] = {}
    for line in lines.splitlines():
        if not line.strip():
            continue
        name, mark, path = line.partition(" = ")
        source = (path if mark else line).strip()
        name = name.strip() if mark else readable_name(source)
        if name in experts:
            raise MergeLabError(f"Two experts are called {name!r}; write 'another name = {source}'.")
        experts[name] = source
    if not experts:
        raise MergeLabError("List at least one expert, one a line.")
    return _selection("Models on this machine", base.strip(), experts, suite.strip() or None)


def hub_selection(base: str, wanted: list[dict[str, str]]) -> dict[str, Any]:
    if not wanted:
        raise MergeLabError("Add at least one expert first: search, pick a checkpoint, and press “Add as expert”.")
    if not base.strip():
        raise MergeLabError("Say which base the experts were fine-tuned from, as org/name.")
    names: dict[str, str] = {}
    for item in wanted:
        name = readable_name(item["source"])
        names[name if name not in names else item["repo"].replace("/", "-")] = item["source"]
    return _selection("Models from the Hub", f"hub:{base.strip().removeprefix('hub:')}", names, None)


def _selection(title: str, base: str, experts: dict[str, str], suite: str | None) -> dict[str, Any]:
    Recipe("linear", tuple(experts.values()), base_model=base, suite=suite)  # is well-formed, or says why not
    return {"title": title, "zoo": None, "base": base, "experts": experts, "suite": suite, "tuned": {}}


# ---- what is shown ------------------------------------------------------------------------------------------------------


def card(page: Page, selection: Mapping[str, Any]) -> str:
    """What is on the bench now."""
    titles = page.titles(selection)
    body = [
        [html.escape(name), html.escape(titles.get(name, "–")), f"<code>{html.escape(_shown(source))}</code>"]
        for name, source in selection["experts"].items()
    ]
    body.insert(0, ["base", "–", f"<code>{html.escape(_shown(selection['base']))}</code>"])
    caption = f"On the bench: {selection['title']}"
    return views.table(["Checkpoint", "Task", "Source"], body, caption, words=True)


def _shown(source: str) -> str:
    """A source for reading: a commit shortened."""
    repo, mark, commit = source.partition("@")
    return f"{repo}@{commit[:10]}" if mark and len(commit) >= 40 else source


def findings(report: Mapping[str, Any]) -> str:
    """The pre-flight verdict: each finding with a colour, a word and the cure."""
    items = []
    for item in report["findings"]:
        color, word = LEVELS.get(item["level"], LEVELS["warn"])
        fix = f' <span class="ml-fix">{html.escape(item["fix"])}</span>' if item.get("fix") else ""
        items.append(f'<li class="ml-{color}"><b>{word}</b> {html.escape(item["text"])}{fix}</li>')
    size = report.get("bytes_out")
    cost = []
    if size:
        cost.append(f"{report.get('tensors', '?')} tensors, {size / 1e6:.0f} MB out")
    if report.get("peak_memory"):
        cost.append(f"about {report['peak_memory'] / 1e6:.0f} MB of memory")
    if report.get("seconds"):
        cost.append(f"about {report['seconds']:.0f} s" if report["seconds"] >= 1 else "under a second")
    line = f'<p class="ml-cost">{html.escape("; ".join(cost))}</p>' if cost else ""
    return f'<section class="ml-verdict" aria-label="Pre-flight check"><h4>Pre-flight check</h4><ul>{"".join(items)}</ul>{line}</section>'


def plain(model: Any) -> dict[str, Any]:
    """A Hub model as plain values for a visitor's state."""
    keys = (
        "repo",
        "revision",
        "base",
        "relation",
        "license",
        "dtype",
        "parameters",
        "bytes",
        "downloads",
        "likes",
        "gated",
    )
    return {**{key: getattr(model, key, None) for key in keys}, "source": model.source}


def hub_table(models: list[dict[str, Any]]) -> str:
    body = [
        [
            html.escape(m["repo"]) + (' <span class="ml-tag">gated</span>' if m["gated"] else ""),
            html.escape(m["relation"] or "–"), size(m["bytes"]), html.escape(m["dtype"] or "–"),
            html.escape(m["license"] or "not said"), f"<code>{html.escape((m['revision'] or '–')[:10])}</code>",
            f"{m['downloads'] or 0:,}", f"{m['likes'] or 0:,}",
        ]
        for m in models
    ]  # fmt: skip
    head = ["Repository", "Relation", "Size", "Dtype", "Licence", "Commit", "Downloads", "Likes"]
    return views.table(head, body, f"{len(models)} checkpoints, most downloaded first", words=True)


def inside_card(model: Any) -> str:
    """What a checkpoint holds, from its headers."""
    infos = list(model.infos.values())
    text = (
        f"{model.repo} at {model.revision[:10]}: {len(infos)} tensors, {size(model.bytes)}, {model.dtype or 'mixed dtypes'}, "
        f"licence {model.license or 'not said'}. No weights were downloaded."
    )
    body = [
        [f"<code>{html.escape(i.name)}</code>", i.dtype, " × ".join(map(str, i.shape)) or "scalar"] for i in infos[:12]
    ]
    more = views.note(f"… and {len(infos) - 12} more tensors.") if len(infos) > 12 else ""
    return views.note(text) + views.table(["Tensor", "Dtype", "Shape"], body, "The first tensors", words=True) + more


def basket_list(wanted: list[dict[str, str]]) -> str:
    items = "".join(f"<li><code>{html.escape(_shown(item['source']))}</code></li>" for item in wanted)
    return f'<section aria-label="Experts to merge"><h4>Experts to merge</h4><ol class="ml-list">{items}</ol></section>'


def size(count: int | None) -> str:
    """Bytes for reading."""
    if not count:
        return "–"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"
