"""The Geometry tab: how the experts' task vectors lie to each other."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import Any

import gradio as gr

from .. import figures
from ..errors import Cancelled
from . import train_facts, views
from .errors import sentence
from .geometry_tables import WHOLE
from .jobs import Done, Step
from .page import CHEAP, COMPUTE, PRIVATE, Page, busy, session_of


def build(page: Page, tab: gr.Tab, trained: gr.State) -> None:
    """Lay the tab out; ``trained`` is the model of the visitor's training run after its last round."""
    _experts(page, tab)
    _training(trained)


def _experts(page: Page, tab: gr.Tab) -> None:
    """How the task vectors of the experts on the bench lie."""
    found = gr.State(None)
    gr.HTML(
        '<p class="ml-lead">A task vector is what fine-tuning added to the base. Where they point the same way, '
        "or pull a weight in opposite directions, merging has to choose.</p>"
    )
    with gr.Row(equal_height=True):
        said = gr.HTML(
            views.status("The task vectors are compared when this tab is opened."), elem_id="geometry-status"
        )
        again = gr.Button("Compare again", size="sm", elem_id="geometry-again", min_width=120, scale=0)
    with gr.Row(equal_height=False):
        with gr.Column(min_width=320):
            layer = gr.Dropdown([WHOLE], value=WHOLE, label="Cosine similarity of", elem_id="geometry-layer")
            cosines = views.place("Cosine similarity of task vectors", "cosines")
        with gr.Column(min_width=320):
            cosine_text = gr.Markdown("", elem_id="cosine-sentence")
            cosine_table = gr.HTML("", elem_id="cosine-table")
    with gr.Row(equal_height=False):
        with gr.Column(min_width=320):
            gr.HTML(views.heading("Norm of each task vector, per layer"))
            norms = views.place("Norm of each task vector, per layer", "norms")
            norm_text = gr.Markdown("", elem_id="norm-sentence")
            norm_table = gr.HTML("", elem_id="norm-table")
        with gr.Column(min_width=320):
            gr.HTML(views.heading("Sign-conflict rate, per layer"))
            conflict = views.place("Sign-conflict rate, per layer", "conflict")
            conflict_text = gr.Markdown("", elem_id="conflict-sentence")
            conflict_table = gr.HTML("", elem_id="conflict-table")
    outs = [cosines, cosine_text, cosine_table, norms, norm_text, norm_table, conflict, conflict_text, conflict_table]

    def compare(selection: dict[str, Any], have: Any, request: gr.Request) -> Iterator[Any]:
        """Compute the tables once per selection; a second visit of the tab costs nothing."""
        key = {"base": selection["base"], "experts": selection["experts"]}
        if have and have["of"] == key:
            yield views.skip(3)
            return
        try:

            def work(progress: Any, stop: Any) -> Any:
                return page.lab.geometry(selection, progress, stop)

            for item in page.jobs.run(session_of(request), work):
                if isinstance(item, Step):
                    yield [busy(item), *views.skip(2)]
                elif isinstance(item, Done):
                    tables = item.value
                    text = f"{len(tables['names'])} task vectors over {len(tables['layers'])} layers."
                    choices = gr.update(choices=[WHOLE, *tables["layers"]], value=WHOLE)
                    yield [views.status(text), {"of": key, **tables}, choices]
        except Cancelled:
            yield [views.status("Stopped."), *views.skip(2)]
        except Exception as error:
            yield [views.status(sentence(error), "error"), *views.skip(2)]

    def forget() -> None:
        return None

    inputs, results = [page.selection, found], [said, found, layer]
    tab.select(compare, inputs, results, show_progress="hidden", **COMPUTE, **PRIVATE)
    again.click(forget, None, found, **CHEAP, **PRIVATE).then(
        compare, inputs, results, show_progress="hidden", **COMPUTE, **PRIVATE
    )
    found.change(everything, [found, layer], outs, **CHEAP, **PRIVATE)
    layer.input(cosine_view, [found, layer], outs[:3], **CHEAP, **PRIVATE)


def _training(trained: gr.State) -> None:
    """How the task vectors of a training run's last round lie; there once a round has ended."""
    with gr.Column(visible=False, elem_id="geometry-training") as section:
        heading = gr.HTML("", elem_id="geometry-training-heading")
        with gr.Row(equal_height=False):
            with gr.Column(min_width=320):
                cosines = views.place("Cosine similarity of the training round's task vectors", "training-cosines")
            with gr.Column(min_width=320):
                text = gr.Markdown("", elem_id="training-cosine-sentence")
                table = gr.HTML("", elem_id="training-cosine-table")

    def show_training(model: dict[str, Any] | None) -> list[Any]:
        if not model or not model.get("cosines"):
            return [gr.update(visible=False), *views.skip(4)]
        title = views.heading(f"Task vectors of training, round {model['round']}")
        return [gr.update(visible=True), title, *train_facts.cosine_view(model)]

    trained.change(show_training, trained, [section, heading, cosines, text, table], **CHEAP, **PRIVATE)


def everything(found: dict[str, Any] | None, layer: str) -> list[Any]:
    """All figures, sentences and tables."""
    if not found:
        return views.skip(9)
    return [*cosine_view(found, layer), *norm_view(found), *conflict_view(found)]


def cosine_view(found: dict[str, Any] | None, layer: str) -> list[Any]:
    """Heat map, sentence and table of the cosines of one layer or of the whole model."""
    if not found:
        return views.skip(3)
    names, matrix = found["names"], found["cosine"].get(layer) or found["cosine"][WHOLE]
    body = [
        [html.escape(name), *("–" if value is None else f"{value:.3f}" for value in row)]
        for name, row in zip(names, matrix, strict=True)
    ]
    table = views.table(["Task vector", *map(html.escape, names)], body, f"Cosine similarity, {layer}")
    file = views.link("Cosines as CSV", views.to_csv(["task vector", *names], [[n, *r] for n, r in zip(names, matrix, strict=True)]), "mergelab-cosines.csv")  # fmt: skip  # noqa: E501
    numbers = [[float("nan") if value is None else value for value in row] for row in matrix]
    return [
        views.plot(figures.cosine_heatmap(names, numbers), "cosines"), figures.describe_cosines(names, numbers),
        table + f'<p class="ml-files">{file}</p>',
    ]  # fmt: skip


def norm_view(found: dict[str, Any]) -> list[Any]:
    """Norms per layer: lines, sentence, table."""
    layers, norms = found["layers"], found["norms"]
    body = [
        [html.escape(layer), *(_number(norms[name][place]) for name in found["names"])]
        for place, layer in enumerate(layers)
    ]
    body.append(["Whole model", *(_number(found["norm"][name]) for name in found["names"])])
    table = views.table(["Layer", *map(html.escape, found["names"])], body, "Norm of each task vector", len(layers))
    lines = [[layer, *(norms[name][place] for name in found["names"])] for place, layer in enumerate(layers)]
    file = views.link("Norms as CSV", views.to_csv(["layer", *found["names"]], lines), "mergelab-norms.csv")
    return [
        views.plot(figures.layer_lines(layers, norms), "norms"), figures.describe_norms(layers, norms),
        table + f'<p class="ml-files">{file}</p>',
    ]  # fmt: skip


def conflict_view(found: dict[str, Any]) -> list[Any]:
    """Sign-conflict rate per layer: line, sentence, table."""
    layers, rates = found["layers"], found["conflict"]
    body = [
        [html.escape(layer), "–" if rate is None else f"{rate:.1%}"] for layer, rate in zip(layers, rates, strict=True)
    ]
    whole = found.get("conflict_whole")
    body.append(["Whole model", "–" if whole is None else f"{whole:.1%}"])
    table = views.table(["Layer", "Conflict"], body, "Share of weights pulled both up and down", len(layers))
    file = views.link("Conflict as CSV", views.to_csv(["layer", "conflict"], [list(x) for x in zip(layers, rates, strict=True)]), "mergelab-conflict.csv")  # fmt: skip  # noqa: E501
    return [
        views.plot(figures.layer_lines(layers, {"sign conflict": rates}), "conflict"),
        figures.describe_conflict(layers, rates, whole), table + f'<p class="ml-files">{file}</p>',
    ]  # fmt: skip


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
