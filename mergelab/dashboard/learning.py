"""Learned coefficients on the Merge tab: λ by layer and task by step, and whether predictions are too sure."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import gradio as gr

from .. import figures
from . import drafts, views
from .errors import sentence
from .page import CHEAP, PRIVATE, Page

_VIEW = ("lambda_figure", "lambda_text", "lambda_table", "entropy", "confidence", "learned_text", "learned_table")
#: Above this share of one class at the end a task has probably collapsed.
_LOUD = 0.9


def build(out: dict[str, Any]) -> None:
    """The tab "Coefficients"."""
    out["learned"] = gr.State(None)
    out["lambda_status"] = gr.HTML(
        views.note("Press Learn under “Data”; then the coefficients of every step are here."), elem_id="learned-status"
    )
    out["record"] = gr.Slider(
        0, 1, value=0, step=1, label="Step", visible=False, interactive=True, elem_id="learned-step", buttons=[],
        info="Move it: from the start to what was learned.",
    )  # fmt: skip
    out["lambda_text"] = gr.Markdown("", elem_id="learned-sentence")
    with gr.Row(equal_height=False):
        with gr.Column(min_width=320):
            gr.HTML(views.heading("λ of every task in every layer"))
            out["lambda_figure"] = views.place("λ of every task in every layer", "learned-map")
        with gr.Column(min_width=320):
            out["lambda_table"] = gr.HTML("", elem_id="learned-table")
    out["learned_text"] = gr.Markdown("", elem_id="learned-entropy-sentence")
    with gr.Row(equal_height=False):
        with gr.Column(min_width=320):
            gr.HTML(views.heading("Entropy of predictions, by step"))
            out["entropy"] = views.place("Entropy of predictions by step", "learned-entropy")
        with gr.Column(min_width=320):
            gr.HTML(views.heading("Mean largest probability, by step"))
            out["confidence"] = views.place("Mean largest probability by step", "learned-confidence")
    out["learned_table"] = gr.HTML("", elem_id="learned-ends")


def wire(page: Page, out: dict[str, Any]) -> None:
    view = [out[name] for name in _VIEW]

    def find(draft: drafts.Draft, selection: dict[str, Any], old: Any) -> list[Any]:
        """The coefficients of the recipe on the form, where they are kept."""
        if not page.methods[draft["method"]].get("learns"):
            return [gr.skip(), gr.update(visible=False), gr.skip(), *views.skip(len(view))]
        try:
            recipe = page.recipe(draft, selection)
            found = old if old and old["key"] == recipe.hash else page.lab.data(selection).coefficients(recipe)
        except Exception as error:
            return [views.note(sentence(error), "error"), gr.skip(), gr.skip(), *views.skip(len(view))]
        if found is None:
            note = views.note("The coefficients are not learned for these values yet: press Learn under “Data”.")
            return [note, gr.update(visible=False), None, *views.skip(len(view))]
        found = {**found, "titles": page.titles(selection)}
        last = len(found["history"]) - 1
        return [said(found), _slider(found, last), found, *shown(found, last)]

    def move(found: Any, place: int) -> list[Any]:
        return [_slider(found, int(place)), *shown(found, int(place))] if found else views.skip(1 + len(view))

    page.data_draft.change(
        find, [page.draft, page.selection, out["learned"]],
        [out["lambda_status"], out["record"], out["learned"], *view], trigger_mode="always_last", **CHEAP, **PRIVATE,
    )  # fmt: skip
    out["record"].release(
        move, [out["learned"], out["record"]], [out["record"], *view], trigger_mode="always_last", **CHEAP, **PRIVATE
    )


def said(found: Mapping[str, Any]) -> str:
    """What was looked at; test pictures are marked."""
    mark = '<span class="ml-badge ml-loud">transductive: looks at test images</span>' if found["transductive"] else ""
    text = (
        f"Learned per {found['per']} in {found['seconds']:.0f} s from {found['samples']} looks at {found['data_used']}."
    )
    return f"<p>{mark}{html.escape(text)}</p>"


def shown(found: Mapping[str, Any], place: int) -> list[Any]:
    """Map, sentence and table of one record; curves, sentence and table of the whole run."""
    titles = [found.get("titles", {}).get(task, task) for task in found["tasks"]]
    record = found["history"][max(0, min(place, len(found["history"]) - 1))]
    values, layers = record["values"], found["layers"]
    top = max(max(map(max, each["values"])) for each in found["history"])
    figure = figures.coefficient_heatmap(layers, titles, values, top=max(top, 1e-9))
    body = [
        [html.escape(title), f"{sum(row) / len(row):.3f}", f"{min(row):.3f}", f"{max(row):.3f}"]
        for title, row in zip(titles, values, strict=True)
    ]
    head = ["step", *(f"{task}: {layer}" for task in found["tasks"] for layer in layers)]
    lines = [[each["step"], *(v for row in each["values"] for v in row)] for each in found["history"]]
    file = views.link("Every step as CSV", views.to_csv(head, lines), "mergelab-coefficients.csv")
    table = views.table(["Task", "Mean λ", "Smallest", "Largest"], body, f"Coefficients at step {record['step']}")
    text = figures.describe_coefficients(titles, values, record["step"])
    upper = [views.plot(figure, "coefficients"), text, f'{table}<p class="ml-files">{file}</p>']
    return [*upper, *_run(found, titles, record["step"])]


def _run(found: Mapping[str, Any], titles: list[str], step: int) -> list[Any]:
    steps = list(range(1, len(found["entropy"]) + 1))
    entropy, sure = (
        {title: [row[i] for row in found[key]] for i, title in enumerate(titles)} for key in ("entropy", "confidence")
    )
    curves = [
        views.plot(figures.step_lines(steps, entropy, axis="nats", shown=step), "entropy"),
        views.plot(figures.step_lines(steps, sure, axis="probability", shown=step, top=1.0), "confidence"),
    ]
    means = {key: [sum(row) / len(row) for row in found[key]] for key in ("entropy", "confidence")}
    text = figures.describe_learning(means["entropy"], means["confidence"], found["findings"])
    if not steps:
        return [*curves, text, ""]
    body = []
    for i, (task, title) in enumerate(zip(found["tasks"], titles, strict=True)):
        ends = found["classes"].get(task, {})
        first, last = ends.get("first"), ends.get("last")
        loud = last is not None and last >= _LOUD and first is not None and first < _LOUD
        share = "–" if last is None else f"{last:.0%}"
        cells = [f"{found[key][place][i]:.3f}" for key in ("entropy", "confidence") for place in (0, -1)]
        start = "–" if first is None else f"{first:.0%}"
        body.append([html.escape(title), *cells, start, f"<b>{share} !</b>" if loud else share])
    head = ["Task", "Entropy, first", "last", "Largest probability, first", "last", "Commonest class, first", "last"]
    lines = [[s, *found["entropy"][s - 1], *found["confidence"][s - 1]] for s in steps]
    columns = ["step", *(f"entropy {t}" for t in found["tasks"]), *(f"largest probability {t}" for t in found["tasks"])]
    file = views.link("Curves as CSV", views.to_csv(columns, lines), "mergelab-entropy.csv")
    caption = "A collapse shows as one class for most pictures at the end"
    return [*curves, text, views.table(head, body, caption) + f'<p class="ml-files">{file}</p>']


def _slider(found: Mapping[str, Any], place: int) -> Any:
    history = found["history"]
    step = history[max(0, min(place, len(history) - 1))]["step"]
    return gr.update(visible=len(history) > 1, maximum=len(history) - 1, value=place, label=f"Step: {step}")
