"""The Predict tab: one picture, three models, side by side."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from typing import Any

import gradio as gr

from ..errors import Cancelled
from . import pictures, views
from .errors import sentence
from .jobs import Done, Step, Superseded
from .merge_events import BARS
from .page import CHEAP, COMPUTE, PRIVATE, Page, busy, session_of
from .work import predict

_TALL = 330  # pixels of the figure on this tab


def build(page: Page, first: dict[str, Any], merge: dict[str, Any], trained: gr.State) -> None:
    """Lay the tab out; ``merge`` are the Merge tab's components, which show the same prediction; ``trained`` is the
    model of the visitor's training run after its last round, which is asked too."""
    with gr.Row(equal_height=False, elem_id="predict-row"):
        with gr.Column(scale=5, min_width=300):
            inputs = pictures.build(first)
        with gr.Column(scale=8, min_width=320):
            said, shown = _answers(first["prediction"])
    pictures.wire(page, inputs, said)
    _wire_samples(page, inputs, said, merge)
    _wire_answers(page, first, said, [merge["card"], merge["said"], merge["live"]])
    _wire_trained(page, trained, shown)


def _answers(prediction: dict[str, Any] | None) -> tuple[Any, list[Any]]:
    said = gr.HTML("", elem_id="predict-status")
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=150):
            card = gr.HTML(views.picture_card(prediction), elem_id="predict-picture")
        with gr.Column(scale=3, min_width=200):
            text = gr.Markdown(views.prediction_sentence(prediction), elem_id="predict-sentence")
    plot = gr.Plot(
        views.prediction_plot(prediction, height=_TALL), label="Class probabilities", show_label=False, container=False,
        elem_id="predict-plot",
    )  # fmt: skip
    table = gr.HTML(views.prediction_table(prediction), elem_id="predict-table")
    return said, [card, text, plot, table]


def _wire_samples(page: Page, inputs: pictures.Inputs, said: Any, merge: dict[str, Any]) -> None:
    """The gallery follows the task, and the task follows the picture and the models on the bench."""
    task = inputs.task

    def samples(task: str | None, selection: dict[str, Any]) -> Any:
        return pictures.samples(page, task, selection)

    def same_task(picture: dict[str, Any]) -> Any:
        return picture["task"], picture["task"]

    def other_models(selection: dict[str, Any], picture: dict[str, Any]) -> Any:
        tasks = page.tasks(selection)
        names = [name for _, name in tasks]
        chosen = picture["task"] if picture["task"] in names else next(iter(names), None)
        field = gr.update(choices=tasks, value=chosen)
        return field, field, picture if chosen == picture["task"] else {"task": chosen, "place": 0}

    shown = [inputs.gallery, said]
    task.change(samples, [task, page.selection], shown, **CHEAP, **PRIVATE)
    page.selection.change(
        other_models, [page.selection, page.picture], [task, merge["task"], page.picture], **CHEAP, **PRIVATE
    ).then(samples, [task, page.selection], shown, **CHEAP, **PRIVATE)
    page.first_visit.append([(samples, [task, page.selection], shown)])
    page.picture.change(same_task, page.picture, [task, merge["task"]], **CHEAP, **PRIVATE)


def _wire_answers(page: Page, first: dict[str, Any], said: Any, shown: list[Any]) -> None:
    """Predict whenever the picture changes, and show the prediction on the Merge tab (``shown``)."""

    def answer(picture: dict[str, Any], draft: Any, selection: dict[str, Any], request: gr.Request) -> Iterator[Any]:
        try:
            recipe = page.recipe(draft, selection)

            def work(progress: Any, stop: Any) -> Any:
                return predict(page.lab, selection, recipe, picture, progress, stop)

            for item in page.jobs.run(session_of(request), work):
                if isinstance(item, Step):
                    yield busy(item), gr.skip()
                elif isinstance(item, Done):
                    yield "", item.value
        except Superseded:
            yield views.skip(2)
        except Cancelled:
            yield views.status("Stopped."), gr.skip()
        except Exception as error:
            yield views.status(sentence(error), "error"), gr.skip()

    def show(prediction: Mapping[str, Any] | None) -> list[Any]:
        text, card = views.prediction_sentence(prediction), views.picture_card(prediction)
        return [card, text, views.prediction_plot(prediction, height=BARS)]

    inputs, outputs = [page.picture, page.draft, page.selection], [said, page.prediction]
    if first["prediction"] is None and first["result"] is not None:
        page.first_visit.append([(answer, inputs, outputs)])
    page.picture.change(
        answer, inputs, outputs, show_progress="hidden", trigger_mode="always_last", **COMPUTE, **PRIVATE
    )
    page.prediction.change(show, page.prediction, shown, **CHEAP, **PRIVATE)


def _wire_trained(page: Page, trained: gr.State, shown: list[Any]) -> None:
    """Show the prediction on this tab, with what the model of a training run says of the same picture."""
    more = gr.State(None)

    def ask(model: Any, picture: dict[str, Any], prediction: Any) -> Any:
        """The trained model's rows, and of which picture they are."""
        if not model or not prediction:
            return None
        try:
            found = page.lab.runs.predict(model, picture)
        except Exception as error:
            return {"png": prediction["png"], "rows": [], "why": sentence(error)}
        return None if found is None else trained_rows(model, found, prediction["png"])

    def show(prediction: Mapping[str, Any] | None, extra: Any) -> list[Any]:
        said = joined(prediction, extra)
        text, card = views.prediction_sentence(said), views.picture_card(prediction)
        plot = views.prediction_plot(said, height=_TALL + (40 if said is not prediction else 0))
        return [card, text, plot, views.prediction_table(said) + trained_table(said, extra)]

    gr.on(
        [page.prediction.change, trained.change], ask, [trained, page.picture, page.prediction], more,
        trigger_mode="always_last", **CHEAP, **PRIVATE,
    ).then(show, [page.prediction, more], shown, **CHEAP, **PRIVATE)  # fmt: skip


def trained_rows(model: Mapping[str, Any], found: Mapping[str, Any], png: str) -> dict[str, Any]:
    """One more series of class probabilities: ``{"png": the picture, "rows"}``."""
    series = f"training, round {model['round']}"
    pairs = zip(found["classes"], found["probabilities"], strict=True)
    rows = [{"series": series, "role": "kept", "class": str(c), "probability": float(p)} for c, p in pairs]
    return {"png": png, "rows": rows}


def joined(prediction: Mapping[str, Any] | None, extra: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The prediction with the trained model's rows, where both are of the same picture."""
    if not prediction or not extra or extra["png"] != prediction["png"] or not extra["rows"]:
        return prediction
    return {**prediction, "rows": [*prediction["rows"], *extra["rows"]]}


def trained_table(prediction: Mapping[str, Any] | None, extra: Mapping[str, Any] | None, top: int = 5) -> str:
    """The trained model's likeliest classes, below those of the others."""
    if not prediction or not extra or extra["png"] != prediction["png"]:
        return ""
    if not extra["rows"]:
        return views.note(extra.get("why", ""))
    ranked = sorted(extra["rows"], key=lambda row: -row["probability"])[:top]
    cells = [
        html.escape(row["class"]) + (" ✓" if row["class"] == prediction.get("truth") else "")
        + f" <small>{row['probability']:.1%}</small>"
        for row in ranked
    ]  # fmt: skip
    body = [[str(place + 1), cell] for place, cell in enumerate(cells)]
    series = ranked[0]["series"]
    return views.table(["Place", series.capitalize()], body, f"Likeliest classes of {series}")
