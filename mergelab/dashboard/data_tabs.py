"""What stands below the figures of the Merge tab for methods that need data: path, blocks, coefficients; on all of them
Surgery and FeatCal."""

from __future__ import annotations

from typing import Any

import gradio as gr

from . import calibrating, drafts, learning, solving, surgery
from .data_panel import wants_data
from .page import CHEAP, PRIVATE, Page


def build(first: dict[str, Any]) -> dict[str, Any]:
    """Lay the sections out; each is there for the methods that it belongs to, Surgery and FeatCal for all."""
    out: dict[str, Any] = {}
    with gr.Column(visible=False, elem_id="path-view") as out["path_view"]:
        solving.build_path(out)
    with gr.Column(visible=False, elem_id="blocks-view") as out["blocks_view"]:
        solving.build_blocks(out)
    with gr.Column(visible=False, elem_id="learned-view") as out["learned_view"]:
        learning.build(out)
    out["surgery"] = surgery.build(first)
    out["calibrating"] = calibrating.build(first)
    return out


def wire(page: Page, out: dict[str, Any]) -> None:
    def relay(draft: drafts.Draft) -> Any:
        """The draft, for what only methods that need data show."""
        return draft if wants_data(page.methods[draft["method"]]) else gr.skip()

    page.draft.change(relay, page.draft, page.data_draft, trigger_mode="always_last", **CHEAP, **PRIVATE)
    solving.wire(page, out)
    learning.wire(page, out)
    surgery.wire(page, out["surgery"])
    calibrating.wire(page, out["calibrating"])

    def redraw(form: drafts.Draft) -> list[Any]:
        """The sections that belong to the method."""
        method = page.methods[form["method"]]
        learns, path = bool(method.get("learns")), any(p["name"] == "iterations" for p in method["parameters"])
        shown = (path, wants_data(method) and not learns, learns)
        return [gr.update(visible=each) for each in shown]

    page.form.change(
        redraw, page.form, [out[name] for name in ("path_view", "blocks_view", "learned_view")], **CHEAP, **PRIVATE
    )
