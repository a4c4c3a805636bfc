"""The Results tab: the whole numbers, and a comparison with up to five earlier results of this visit."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import gradio as gr

from . import views
from .page import CHEAP, PRIVATE, Page


def build(page: Page, first: dict[str, Any]) -> dict[str, Any]:
    """Lay the tab out; gives what another tab needs to keep a result here: ``shown`` (what is compared). What is kept
    is drawn as soon as it changes."""
    result = first["result"]
    with gr.Row(elem_id="results-actions", equal_height=False):
        keep = gr.Button("Keep this result", variant="primary", elem_id="keep", min_width=190, scale=0)
        clear = gr.Button("Clear kept results", elem_id="clear-kept", min_width=190, scale=0)
        said = gr.HTML(_hint(page.settings.max_kept), elem_id="results-message")
    shown = gr.CheckboxGroup([], value=[], label="Compare with", visible=False, elem_id="compare")
    text = gr.Markdown(views.sentence(result), elem_id="results-sentence")
    with gr.Row(equal_height=False, elem_id="results-figures"):
        with gr.Column(min_width=320):
            gr.HTML(views.heading("Accuracy relative to each task’s expert"))
            radar = gr.Plot(
                views.radar(result, height=430),
                label="Accuracy relative to each task's expert",
                show_label=False,
                container=False,
                elem_id="results-radar",
            )
        with gr.Column(min_width=320):
            gr.HTML(views.heading("Accuracy per task, with 95 % intervals"))
            bars = gr.Plot(
                views.bars(result),
                label="Accuracy per task, with 95 % intervals",
                show_label=False,
                container=False,
                elem_id="results-bars",
            )
    models = gr.Dataframe(
        _models(result, []), headers=views.MODEL_HEAD, label="Models (click a heading to sort)", interactive=False,
        elem_id="models-table", datatype=["str", "number", "number", "number", "str", "str", "str", "number"],
        wrap=True, column_widths=["160px", "110px", "120px", "120px", "80px", "125px", "360px", "95px"],
    )  # fmt: skip
    tasks = gr.Dataframe(
        _tasks(result, []), headers=views.TASK_HEAD, label="Every task (click a heading to sort)", interactive=False,
        elem_id="tasks-table", datatype=["str", "str", "str", "number", "number", "number", "number", "number"],
        max_height=420, show_search="filter",
    )  # fmt: skip
    files = gr.HTML(_files(result, []), elem_id="results-files")
    outs = [text, radar, bars, models, tasks, files]

    def render(result: views.Result | None, kept: list[views.Result], chosen: list[str]) -> list[Any]:
        others = [other for other in kept if other["label"] in (chosen or [])]
        return [
            views.sentence(result), views.radar(result, others, height=430), views.bars(result, others),
            _models(result, others), _tasks(result, others), _files(result, others),
        ]  # fmt: skip

    def keep_it(result: views.Result | None, kept: list[views.Result]) -> Any:
        if result is None or result.get("evaluation") is None:
            return kept, gr.skip(), views.note("There is no result to keep yet.", "error")
        if any(other["id"] == result["id"] for other in kept):
            return kept, gr.skip(), views.note("This result is kept already; change something first.")
        limit = page.settings.max_kept
        letters = [
            letter for letter in string.ascii_uppercase if all(not o["label"].startswith(f"{letter}:") for o in kept)
        ]
        kept = [*kept, {**result, "label": f"{letters[0]}: {result['label']}"}]
        dropped = f" The oldest, {kept[0]['label']}, made room." if len(kept) > limit else ""
        kept = kept[-limit:]
        labels = [other["label"] for other in kept]
        return (
            kept,
            gr.update(choices=labels, value=labels, visible=True),
            views.note(_count(len(kept), limit) + dropped),
        )

    def clear_all() -> Any:
        return [], gr.update(choices=[], value=[], visible=False), _hint(page.settings.max_kept)

    keep.click(keep_it, [page.result, page.kept], [page.kept, shown, said], **CHEAP, **PRIVATE)
    clear.click(clear_all, None, [page.kept, shown, said], **CHEAP, **PRIVATE)
    # one listener for all: two that draw from what each found when it began could end with the older drawing
    gr.on(
        [page.result.change, page.kept.change, shown.change], render, [page.result, page.kept, shown], outs,
        trigger_mode="always_last", **CHEAP, **PRIVATE,
    )  # fmt: skip
    return {"shown": shown}


def _hint(limit: int) -> str:
    return views.note(f"Keep a result, move a slider on the Merge tab, and compare: up to {limit} results are kept.")


def _count(count: int, limit: int) -> str:
    return f"Kept {count} of {limit}. Now change something on the Merge tab and come back to compare."


def _models(result: views.Result | None, kept: Sequence[views.Result]) -> list[list[Any]]:
    return views.model_table(result, kept) if result and result.get("evaluation") else []


def _tasks(result: views.Result | None, kept: Sequence[views.Result]) -> list[list[Any]]:
    return views.task_table(result, kept) if result and result.get("evaluation") else []


def _files(result: views.Result | None, kept: Sequence[views.Result]) -> str:
    if not result or result.get("evaluation") is None:
        return ""
    models = views.link("Models as CSV", views.to_csv(views.MODEL_HEAD, _models(result, kept)), "mergelab-models.csv")
    tasks = views.link("Tasks as CSV", views.to_csv(views.TASK_HEAD, _tasks(result, kept)), "mergelab-tasks.csv")
    return f'<p class="ml-files">{models}{tasks}<span>Figures: the camera button in the corner saves a PNG.</span></p>'
