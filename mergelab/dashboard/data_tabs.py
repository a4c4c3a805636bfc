"""What stands below the figures of the Merge tab for methods that need data: path, blocks, coefficients."""

from __future__ import annotations

from typing import Any

import gradio as gr

from . import drafts, learning, solving, surgery
from .data_panel import wants_data
from .page import CHEAP, PRIVATE, Page


def build(first: dict[str, Any]) -> dict[str, Any]:
    """Lay the tabs out; hidden while the method needs no data. Below them Surgery, for every method."""
    out: dict[str, Any] = {}
    with gr.Column(visible=False, elem_id="data-view") as out["view"], gr.Tabs(elem_id="data-tabs") as out["tabs"]:
        with gr.Tab("Path", id="path", elem_id="tab-path") as out["path_tab"]:
            solving.build_path(out)
        with gr.Tab("Blocks", id="blocks", elem_id="tab-blocks") as out["blocks_tab"]:
            solving.build_blocks(out)
        with gr.Tab("Coefficients", id="coefficients", elem_id="tab-coefficients") as out["learned_tab"]:
            learning.build(out)
    out["surgery"] = surgery.build(first)
    return out


def wire(page: Page, out: dict[str, Any]) -> None:
    solving.wire(page, out)
    learning.wire(page, out)
    surgery.wire(page, out["surgery"])

    def redraw(form: drafts.Draft) -> list[Any]:
        """The tabs that belong to the method."""
        method = page.methods[form["method"]]
        if not wants_data(method):
            return [gr.update(visible=False), *[gr.skip()] * 4]
        learns, path = bool(method.get("learns")), any(p["name"] == "iterations" for p in method["parameters"])
        return [gr.update(visible=True), gr.update(visible=path), gr.update(visible=not learns),
                gr.update(visible=learns), gr.update(selected=_first(learns, path))]  # fmt: skip

    page.form.change(
        redraw, page.form, [out["view"], out["path_tab"], out["blocks_tab"], out["learned_tab"], out["tabs"]],
        **CHEAP, **PRIVATE,
    )  # fmt: skip


def _first(learns: bool, path: bool) -> str:
    return "coefficients" if learns else "path" if path else "blocks"
