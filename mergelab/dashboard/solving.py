"""A solver's path on the Merge tab: accuracy and objective by iteration, a slider that moves the merged model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from ..errors import Cancelled
from . import drafts, solving_views, views
from .data_panel import DATA, job_of
from .errors import sentence
from .jobs import Done, Step
from .page import CHEAP, PRIVATE, Page, busy, session_of

MOST = [10, 20, 50, 100]
_VIEW = ("figure", "sentence", "table")
_BLOCKS = ("changes", "change_text", "change_table", "left")


def build_path(out: dict[str, Any]) -> None:
    """The section "Path"."""
    out["path"] = gr.State(None)
    gr.HTML(views.heading("The solver’s path") + solving_views.LEAD)
    with gr.Row(equal_height=False, elem_id="path-row"):
        out["most"] = gr.Dropdown(
            [(f"{most} iterations", most) for most in MOST], value=MOST[0], label="Solve up to", filterable=False,
            elem_id="path-most", min_width=160, scale=0,
        )  # fmt: skip
        out["solve"] = gr.Button("Solve the path", variant="primary", elem_id="path-solve", min_width=150, scale=0)
        out["stop"] = gr.Button("Stop", variant="stop", elem_id="path-stop", min_width=70, scale=0)
        out["path_cost"] = gr.HTML("", elem_id="path-cost")
    out["path_status"] = gr.HTML("", elem_id="path-status")
    out["place"] = gr.Slider(
        0, 1, value=0, step=1, label="Iterations", visible=False, interactive=True, elem_id="path-place", buttons=[],
        info="Move it: the merged model, radar, table and prediction follow.",
    )  # fmt: skip
    out["sentence"] = gr.Markdown("", elem_id="path-sentence")
    with gr.Row(equal_height=False):
        with gr.Column(min_width=320):
            out["figure"] = gr.Plot(
                label="Objective and validation accuracy by iteration", show_label=False, container=False,
                elem_id="path-figure",
            )  # fmt: skip
        with gr.Column(min_width=320):
            out["table"] = gr.HTML("", elem_id="path-table")


def build_blocks(out: dict[str, Any]) -> None:
    """The section "Blocks"."""
    with gr.Accordion("Blocks: how far each moved, which were left and why", open=False, elem_id="blocks"):
        _blocks(out)


def _blocks(out: dict[str, Any]) -> None:
    with gr.Row(equal_height=False, elem_id="blocks-row"):
        out["look"] = gr.Button("Look at blocks", elem_id="blocks-look", min_width=170, scale=0)
        out["blocks_status"] = gr.HTML("", elem_id="blocks-status")
    out["change_text"] = gr.Markdown("", elem_id="blocks-sentence")
    with gr.Row(equal_height=False):
        with gr.Column(min_width=320):
            gr.HTML(views.heading("Change ‖x − x₀‖ / ‖τ‖ of every solved block"))
            out["changes"] = gr.Plot(
                label="Change of every solved block, in task vectors", show_label=False, container=False,
                elem_id="blocks-figure",
            )  # fmt: skip
        with gr.Column(min_width=320):
            out["change_table"] = gr.HTML("", elem_id="blocks-table")
            out["left"] = gr.HTML("", elem_id="blocks-left")


def wire(page: Page, out: dict[str, Any]) -> None:
    _wire_solve(page, out)
    _wire_move(page, out)
    _wire_blocks(page, out)


def _wire_solve(page: Page, out: dict[str, Any]) -> None:
    def cost(draft: drafts.Draft, selection: dict[str, Any], most: int) -> str:
        if not draft.get("statistics") or draft["method"] != "mats":
            return ""
        try:
            seconds = page.lab.data(selection).path_seconds(page.recipe(draft, selection), int(most))
        except Exception as error:
            return views.note(sentence(error), "error")
        return solving_views.path_cost(seconds, int(most))

    def solve(draft: drafts.Draft, selection: dict[str, Any], most: int, request: gr.Request) -> Iterator[Any]:
        """One pass with snapshots; the slider starts at what validation chose, and so does the merge."""
        page.jobs.stop(session_of(request), superseded=True)
        try:
            recipe = page.recipe(draft, selection)
            page.lab.check_sources(recipe)

            def work(progress: Any, stop: Any) -> Any:
                data = page.lab.data(selection)
                return data.path(recipe, int(most), page.settings.per_task, progress, stop)

            for item in page.jobs.run(job_of(request), work):
                if isinstance(item, Step):
                    yield [busy(item), *views.skip(4)]
                elif isinstance(item, Done):
                    path = {**item.value, "titles": page.titles(selection), "statistics": draft.get("statistics")}
                    path["layers"] = page.lab.data(selection).layers([b["tensor"] for b in path["blocks"]])
                    place = path["best"] if path["best"] is not None else 0
                    said = views.status(f"Solved and measured in {item.seconds:.0f} s; the snapshots are at hand.")
                    yield [said, path, _slider(path, place), *_moved(path, place, draft)]
        except Cancelled:
            yield [views.status("Stopped. Nothing was kept."), *views.skip(4)]
        except Exception as error:
            yield [views.status(sentence(error), "error"), *views.skip(4)]

    def stop(request: gr.Request) -> Any:
        return gr.skip() if page.jobs.stop(job_of(request)) else views.status("Nothing is running.")

    out["solve"].click(
        solve, [page.draft, page.selection, out["most"]],
        [out["path_status"], out["path"], out["place"], page.form, page.draft], **DATA, **PRIVATE,
    )  # fmt: skip
    out["stop"].click(stop, None, out["path_status"], queue=False, show_progress="hidden", **PRIVATE)
    asked = [page.draft, page.selection, out["most"]]
    page.data_draft.change(cost, asked, out["path_cost"], trigger_mode="always_last", **CHEAP, **PRIVATE)
    out["most"].input(cost, asked, out["path_cost"], **CHEAP, **PRIVATE)


def _wire_move(page: Page, out: dict[str, Any]) -> None:
    def move(path: Any, place: int, draft: drafts.Draft, request: gr.Request) -> Any:
        """The snapshot's weights are on disk: the recipe changes, and everything on the tab follows it."""
        if not path:
            return views.skip(3)
        page.jobs.stop(session_of(request), superseded=True)
        return [_slider(path, int(place)), *_moved(path, int(place), draft)]

    def show(path: Any, draft: drafts.Draft, selection: dict[str, Any]) -> list[Any]:
        """The path's figure with what is merged now marked; nothing once the recipe is another one's."""
        if not path:
            return views.skip(len(_VIEW) + 1)
        place = place_of(page, path, draft, selection)
        if place is None:
            note = views.note("The recipe has changed: solve again for its path.")
            return [*views.skip(len(_VIEW)), note]
        return [*solving_views.path_view(path, place), gr.skip()]

    shown = [*(out[name] for name in _VIEW), out["path_status"]]
    out["place"].release(
        move, [out["path"], out["place"], page.draft], [out["place"], page.form, page.draft],
        trigger_mode="always_last", **CHEAP, **PRIVATE,
    )  # fmt: skip
    gr.on(
        [out["path"].change, page.data_draft.change], show, [out["path"], page.draft, page.selection], shown,
        trigger_mode="always_last", **CHEAP, **PRIVATE,
    )  # fmt: skip


def _wire_blocks(page: Page, out: dict[str, Any]) -> None:
    view = [out[name] for name in _BLOCKS]

    def follow(path: Any, draft: drafts.Draft, selection: dict[str, Any]) -> list[Any]:
        """With a path the blocks move with its slider."""
        place = place_of(page, path, draft, selection) if path else None
        if place is None:
            return views.skip(len(view) + 1)
        return [*solving_views.blocks_view(path, place), views.status(f"After {path['grid'][place]} iterations.")]

    def look(draft: drafts.Draft, selection: dict[str, Any], request: gr.Request) -> Iterator[Any]:
        """Merge once more and keep the log: what the method wrote down about every tensor."""
        try:
            recipe = page.recipe(draft, selection)

            def work(progress: Any, stop: Any) -> Any:
                data = page.lab.data(selection)
                blocks = data.blocks(recipe, progress, stop)
                return {"blocks": blocks, "layers": data.layers([block["tensor"] for block in blocks])}

            for item in page.jobs.run(job_of(request), work):
                if isinstance(item, Step):
                    yield [*views.skip(len(view)), busy(item, "Merging:")]
                elif isinstance(item, Done):
                    title, count = page.methods[recipe.merge_method]["title"], len(item.value["blocks"])
                    said = views.status(f"{title}: {count} blocks.")
                    yield [*solving_views.blocks_view(item.value, 0), said]
        except Cancelled:
            yield [*views.skip(len(view)), views.status("Stopped.")]
        except Exception as error:
            yield [*views.skip(len(view)), views.status(sentence(error), "error")]

    gr.on(
        [out["path"].change, page.data_draft.change], follow, [out["path"], page.draft, page.selection],
        [*view, out["blocks_status"]], trigger_mode="always_last", **CHEAP, **PRIVATE,
    )  # fmt: skip
    out["look"].click(look, [page.draft, page.selection], [*view, out["blocks_status"]], **DATA, **PRIVATE)


def place_of(page: Page, path: dict[str, Any], draft: drafts.Draft, selection: dict[str, Any]) -> int | None:
    """Where on the path the draft is; None where it is another recipe's."""
    try:
        recipe = page.recipe(draft, selection)
    except Exception:  # it says so elsewhere
        return None
    k = recipe.parameters.get("iterations")
    still = recipe.replace(parameters={**recipe.parameters, "iterations": 0}).hash
    return path["grid"].index(k) if k in path["grid"] and still == path["key"] else None


def _moved(path: dict[str, Any], place: int, draft: drafts.Draft) -> tuple[Any, Any]:
    new = drafts.copied(draft)
    place = max(0, min(place, len(path["grid"]) - 1))
    new["parameters"]["iterations"] = path["grid"][place]
    return drafts.shown(drafts.on_validation(new) if place == path["best"] else new)


def _slider(path: dict[str, Any], place: int) -> Any:
    grid = path["grid"]
    mark = ", chosen on validation" if place == path["best"] else ""
    return gr.update(visible=True, maximum=len(grid) - 1, value=place, label=f"Iterations: {grid[place]}{mark}")
