"""The Predict tab: one picture, three models, side by side."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from ..errors import Cancelled, MergeLabError
from . import views
from .errors import sentence
from .jobs import Done, Step, Superseded
from .merge_events import BARS
from .page import CHEAP, COMPUTE, PRIVATE, Page, busy, session_of
from .work import predict

#: A pad of our own: gradio's editor asks for a tool to be picked first, and is not made for a finger.
_PAD = '<canvas width="280" height="280" role="img" aria-label="Drawing pad: draw with a finger or the mouse"></canvas>'
_PAD_SCRIPT = """
const canvas = element.querySelector("canvas"), pen = canvas.getContext("2d");
let drawing = false;
const at = (e) => { const r = canvas.getBoundingClientRect();
  return [(e.clientX - r.left) * canvas.width / r.width, (e.clientY - r.top) * canvas.height / r.height]; };
canvas.addEventListener("pointerdown", (e) => { drawing = true; canvas.setPointerCapture(e.pointerId); pen.beginPath();
  pen.moveTo(...at(e)); pen.lineWidth = 22; pen.lineCap = pen.lineJoin = "round"; pen.strokeStyle = "#fff";
  pen.lineTo(...at(e)); pen.stroke(); });
canvas.addEventListener("pointermove", (e) => { if (drawing) { pen.lineTo(...at(e)); pen.stroke(); } });
for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { drawing = false; });
"""
_CLEAR = """() => { const c = document.querySelector("#pad canvas");
  c.getContext("2d").clearRect(0, 0, c.width, c.height); }"""
_SEND = """(task, _, ink) => [task, document.querySelector("#pad canvas").toDataURL("image/png"), ink]"""
_MOST_SIDE = 4096
_TALL = 330  # pixels of the figure on this tab


def build(page: Page, first: dict[str, Any], merge: dict[str, Any]) -> None:
    """Lay the tab out; ``merge`` are the Merge tab's components, which show the same prediction."""
    with gr.Row(equal_height=False, elem_id="predict-row"):
        with gr.Column(scale=5, min_width=300):
            task, gallery, upload, drawing = _inputs(first)
        with gr.Column(scale=8, min_width=320):
            said, shown = _answers(first["prediction"])
    _wire_pictures(page, task, upload, drawing, said)
    _wire_samples(page, task, gallery, said, merge)
    _wire_answers(page, first, said, [*shown, merge["card"], merge["said"], merge["live"]])


def _inputs(first: dict[str, Any]) -> tuple[Any, Any, Any, tuple[Any, Any, Any]]:
    task = gr.Dropdown(
        first["tasks"], value=first["picture"]["task"], label="Task: whose head reads the picture",
        elem_id="predict-task", filterable=False,
    )  # fmt: skip
    with gr.Tabs(elem_id="picture-from"):
        with gr.Tab("Pick a sample", elem_id="from-sample"):
            gallery = gr.Gallery(
                label="Test pictures of this task", columns=4, height=250, allow_preview=False, object_fit="contain",
                show_label=False, interactive=False, buttons=[], elem_id="samples",
            )  # fmt: skip
        with gr.Tab("Upload", elem_id="from-upload"):
            upload = gr.File(label="A picture: PNG, JPEG, WebP, GIF or BMP", elem_id="upload", height=150)
        with gr.Tab("Draw", elem_id="from-drawing"):
            ink = gr.Radio(["white on black", "black on white"], value="white on black", label="Ink", elem_id="ink")
            gr.HTML(_PAD, js_on_load=_PAD_SCRIPT, elem_id="pad")
            pad = gr.Textbox(label="Drawing", visible=False, elem_id="drawing")
            clear = gr.Button("Clear", size="sm", elem_id="clear-drawing")
            clear.click(None, None, None, js=_CLEAR, **PRIVATE)
            read = gr.Button("Read the drawing", variant="primary", elem_id="read-drawing")
    return task, gallery, upload, (ink, pad, read)


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


def _wire_pictures(page: Page, task: Any, upload: Any, drawing: tuple[Any, Any, Any], said: Any) -> None:
    """From an uploaded file or a drawing to the picture, or to a sentence that says why it is none."""

    def cleaned(task: str, source: Callable[[], Any]) -> Any:
        try:
            return {"task": task, "pixels": page.lab.picture(source())[0].tolist()}, ""
        except Exception as error:
            return gr.skip(), views.status(sentence(error), "error")

    def uploaded(task: str, path: str | None) -> Any:
        return cleaned(task, lambda: path) if path else (gr.skip(), "")

    def drawn(task: str, drawing: str, ink: str) -> Any:
        return cleaned(task, lambda: flatten(drawing, ink))

    ink, pad, read = drawing
    upload.upload(uploaded, [task, upload], [page.picture, said], **CHEAP, **PRIVATE)
    read.click(drawn, [task, pad, ink], [page.picture, said], js=_SEND, **CHEAP, **PRIVATE)


def _wire_samples(page: Page, task: Any, gallery: Any, said: Any, merge: dict[str, Any]) -> None:
    """The gallery follows the task, and the task follows the picture and the models on the bench."""

    def samples(task: str | None, selection: dict[str, Any]) -> Any:
        try:
            bench = page.lab.open(selection)
            if bench.suite is None or task is None:
                return [], views.note("These models have no suite, so there are no pictures to pick from.", "error")
            return [(image, label) for _, image, label in bench.samples(task)], ""
        except Exception as error:
            return [], views.note(sentence(error), "error")

    def change_task(task: str, picture: dict[str, Any]) -> dict[str, Any]:
        return {**picture, "task": task} if picture.get("pixels") is not None else {"task": task, "place": 0}

    def pick(task: str, event: gr.SelectData) -> dict[str, Any]:
        return {"task": task, "place": int(event.index)}

    def same_task(picture: dict[str, Any]) -> Any:
        return picture["task"], picture["task"]

    def other_models(selection: dict[str, Any], picture: dict[str, Any]) -> Any:
        tasks = page.tasks(selection)
        names = [name for _, name in tasks]
        chosen = picture["task"] if picture["task"] in names else next(iter(names), None)
        field = gr.update(choices=tasks, value=chosen)
        return field, field, picture if chosen == picture["task"] else {"task": chosen, "place": 0}

    shown = [gallery, said]
    task.change(samples, [task, page.selection], shown, **CHEAP, **PRIVATE)
    page.selection.change(
        other_models, [page.selection, page.picture], [task, merge["task"], page.picture], **CHEAP, **PRIVATE
    ).then(samples, [task, page.selection], shown, **CHEAP, **PRIVATE)
    page.first_visit.append([(samples, [task, page.selection], shown)])
    task.input(change_task, [task, page.picture], page.picture, **CHEAP, **PRIVATE)
    gallery.select(pick, task, page.picture, **CHEAP, **PRIVATE)
    page.picture.change(same_task, page.picture, [task, merge["task"]], **CHEAP, **PRIVATE)


def _wire_answers(page: Page, first: dict[str, Any], said: Any, shown: list[Any]) -> None:
    """Predict whenever the picture changes, and show the prediction on both tabs."""

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
        tall, table = views.prediction_plot(prediction, height=_TALL), views.prediction_table(prediction)
        return [card, text, tall, table, card, text, views.prediction_plot(prediction, height=BARS)]

    inputs, outputs = [page.picture, page.draft, page.selection], [said, page.prediction]
    if first["prediction"] is None and first["result"] is not None:
        page.first_visit.append([(answer, inputs, outputs)])
    page.picture.change(
        answer, inputs, outputs, show_progress="hidden", trigger_mode="always_last", **COMPUTE, **PRIVATE
    )
    page.prediction.change(show, page.prediction, shown, **CHEAP, **PRIVATE)


def flatten(drawing: str, ink: str) -> np.ndarray:
    """The pad's PNG (a data address) as uint8 ``[H, W, 3]``: strokes on a plain ground; an error for an empty one."""
    try:
        data = base64.b64decode((drawing or "").partition(",")[2], validate=True)
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            if max(picture.size) > _MOST_SIDE:
                raise MergeLabError(f"A drawing has at most {_MOST_SIDE} pixels a side.")
            mask = np.asarray(picture.convert("RGBA"))[..., 3]
    except MergeLabError:
        raise
    except Exception:  # a decoder raises anything on what is no picture
        raise MergeLabError("The drawing did not arrive as a picture; please draw it again.") from None
    if not mask.any():
        raise MergeLabError("The drawing is empty: draw something first.")
    grey = mask if ink == "white on black" else 255 - mask
    return np.repeat(grey[..., None], 3, axis=-1).astype(np.uint8)
