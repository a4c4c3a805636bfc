"""A picture from a sample, a file or a drawing: the inputs that the Predict and the Router tab have in common."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from ..errors import MergeLabError
from . import views
from .errors import sentence
from .page import CHEAP, PRIVATE, Page

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
_CLEAR = """() => { const c = document.querySelector("#%spad canvas");
  c.getContext("2d").clearRect(0, 0, c.width, c.height); }"""
_SEND = """(task, _, ink) => [task, document.querySelector("#%spad canvas").toDataURL("image/png"), ink]"""
_MOST_SIDE = 4096


@dataclass
class Inputs:
    """The components; ``prefix`` begins their ids, so that a page may have several sets."""

    prefix: str
    task: gr.Dropdown
    gallery: gr.Gallery
    upload: gr.File
    ink: gr.Radio
    pad: gr.Textbox
    read: gr.Button


def build(first: dict[str, Any], prefix: str = "", label: str = "Task: whose head reads the picture") -> Inputs:
    """Lay the inputs out; every id starts with ``prefix``."""
    task = gr.Dropdown(
        first["tasks"], value=first["picture"]["task"], label=label, elem_id=f"{prefix or 'predict-'}task",
        filterable=False,
    )  # fmt: skip
    with gr.Tabs(elem_id=f"{prefix}picture-from"):
        with gr.Tab("Pick a sample", elem_id=f"{prefix}from-sample"):
            gallery = gr.Gallery(
                label="Test pictures of this task", columns=4, height=250, allow_preview=False, object_fit="contain",
                show_label=False, interactive=False, buttons=[], elem_id=f"{prefix}samples",
            )  # fmt: skip
        with gr.Tab("Upload", elem_id=f"{prefix}from-upload"):
            upload = gr.File(label="A picture: PNG, JPEG, WebP, GIF or BMP", elem_id=f"{prefix}upload", height=150)
        with gr.Tab("Draw", elem_id=f"{prefix}from-drawing"):
            ink = gr.Radio(
                ["white on black", "black on white"], value="white on black", label="Ink", elem_id=f"{prefix}ink"
            )
            gr.HTML(_PAD, js_on_load=_PAD_SCRIPT, elem_id=f"{prefix}pad", elem_classes="ml-pad")
            pad = gr.Textbox(label="Drawing", visible=False, elem_id=f"{prefix}drawing")
            clear = gr.Button("Clear", size="sm", elem_id=f"{prefix}clear-drawing")
            clear.click(None, None, None, js=_CLEAR % prefix, **PRIVATE)
            read = gr.Button("Read the drawing", variant="primary", elem_id=f"{prefix}read-drawing")
    return Inputs(prefix, task, gallery, upload, ink, pad, read)


def wire(page: Page, inputs: Inputs, said: Any) -> None:
    """From a sample, a file or a drawing to ``page.picture``, or to a sentence that says why it is none."""

    def cleaned(task: str, source: Callable[[], Any]) -> Any:
        try:
            return {"task": task, "pixels": page.lab.picture(source())[0].tolist()}, ""
        except Exception as error:
            return gr.skip(), views.status(sentence(error), "error")

    def uploaded(task: str, path: str | None) -> Any:
        return cleaned(task, lambda: path) if path else (gr.skip(), "")

    def drawn(task: str, drawing: str, ink: str) -> Any:
        return cleaned(task, lambda: flatten(drawing, ink))

    def change_task(task: str, picture: dict[str, Any]) -> dict[str, Any]:
        return {**picture, "task": task} if picture.get("pixels") is not None else {"task": task, "place": 0}

    def pick(task: str, event: gr.SelectData) -> dict[str, Any]:
        return {"task": task, "place": int(event.index)}

    task = inputs.task
    task.input(change_task, [task, page.picture], page.picture, **CHEAP, **PRIVATE)
    inputs.gallery.select(pick, task, page.picture, **CHEAP, **PRIVATE)
    inputs.upload.upload(uploaded, [task, inputs.upload], [page.picture, said], **CHEAP, **PRIVATE)
    inputs.read.click(
        drawn, [task, inputs.pad, inputs.ink], [page.picture, said], js=_SEND % inputs.prefix, **CHEAP, **PRIVATE
    )


def samples(page: Page, task: str | None, selection: dict[str, Any]) -> Any:
    """The gallery of a task, and a sentence where there is none."""
    try:
        bench = page.lab.open(selection)
        if bench.suite is None or task is None:
            return [], views.note("These models have no suite, so there are no pictures to pick from.", "error")
        return [(image, label) for _, image, label in bench.samples(task)], ""
    except Exception as error:
        return [], views.note(sentence(error), "error")


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
