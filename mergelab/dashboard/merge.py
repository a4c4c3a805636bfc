"""The Merge tab: choose a method, move its coefficients, see at once what the merged model can still do."""

from __future__ import annotations

from typing import Any

import gradio as gr

from . import controls, data_panel, data_tabs, merge_form, recipes, views
from .merge_events import BARS, RADAR, wire
from .page import Page


def build(page: Page, first: dict[str, Any]) -> dict[str, Any]:
    """Lay the tab out with what is shown first; gives the components that other tabs write to."""
    with gr.Row(elem_id="merge-row", equal_height=False):
        with gr.Column(scale=5, min_width=280, elem_id="merge-left"):
            panel = merge_form.build(page, first)
        with gr.Column(scale=15, min_width=320, elem_id="merge-view"):
            out = _view(first)
            tabs = data_tabs.build(first)
            out |= _recipe(first)
    wire(page, out, first)
    data_panel.wire(page, panel)
    data_tabs.wire(page, tabs)
    return out


def _view(first: dict[str, Any]) -> dict[str, Any]:
    result, prediction = first["result"], first["prediction"]
    with gr.Row(elem_id="status-row", equal_height=False):
        status = gr.HTML(first["status"], elem_id="status")
        stop = gr.Button("Stop", size="sm", variant="stop", elem_id="stop", min_width=70, scale=0)
    text = gr.Markdown(views.sentence(result), elem_id="sentence")
    with gr.Row(elem_id="figures", equal_height=False):
        with gr.Column(scale=1, min_width=320):
            radar = gr.Plot(
                views.radar(result, height=RADAR), label="Accuracy relative to each task's expert", show_label=False,
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
                views.prediction_plot(prediction, height=BARS), label="What the models say", show_label=False,
                elem_id="live-plot", container=False,
            )  # fmt: skip
            said = gr.Markdown(views.prediction_sentence(prediction), elem_id="live-sentence")
    return {
        "status": status, "stop": stop, "sentence": text, "radar": radar, "table": table, "card": card, "task": task,
        "another": another, "live": live, "said": said,
    }  # fmt: skip


def _recipe(first: dict[str, Any]) -> dict[str, Any]:
    recipe = first["recipe"]
    forms = recipes.forms(recipe)
    with gr.Row(elem_id="recipe-row", equal_height=False):
        with gr.Column(scale=7, min_width=320), gr.Accordion("Recipe", open=True, elem_id="recipe"):
            with gr.Tabs(elem_id="recipe-forms"):
                with gr.Tab("YAML", elem_id="recipe-yaml-tab"):
                    yaml = controls.code(forms["yaml"], "yaml", "recipe-yaml")
                with gr.Tab("JSON", elem_id="recipe-json-tab"):
                    data = controls.code(forms["json"], "json", "recipe-json")
                with gr.Tab("Command line", elem_id="recipe-shell-tab"):
                    shell = controls.code(forms["shell"], "shell", "recipe-shell")
                with gr.Tab("Python", elem_id="recipe-python-tab"):
                    python = controls.code(forms["python"], "python", "recipe-python")
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
