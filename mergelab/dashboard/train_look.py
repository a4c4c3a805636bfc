"""In weight space: what a run did there, of a recorded run at once, of a visitor's own once they ask for it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from . import train_look_facts as facts
from . import train_look_views as shown
from . import views
from .errors import sentence
from .page import CHEAP, PRIVATE, Page, busy
from .train_follow import FOLLOW
from .train_run import Looking, Run

_TICK = 0.4  # seconds between two looks at a job
_LEAD = (
    '<p class="ml-note">Where the rounds went: the loss between the models, and how the tasks’ vectors lie to each '
    "other and to where all of them go.</p>"
)
_LATER = "Once a run of yours has ended, its weights can be looked at here."
_NONE = "No look at the weights was recorded with this run."
#: The pieces of a look in the order in which :func:`everything` makes them.
_PIECES = ("view", "of", "cap", "land", "land_text", "land_table", "line", "lines", "lines_text", "lines_table",
           "paper", "paper_text", "paper_table", "cosines", "cosines_text", "cosines_table", "drift", "shares",
           "files")  # fmt: skip


def build(out: dict[str, Any]) -> None:
    """Lay it out, closed; what is in it is put into ``out`` under names that begin with ``look``."""
    out |= {"look": gr.State(None), "look_watch": gr.State(None)}
    with gr.Accordion("In weight space", open=False, elem_id="train-look"):
        gr.HTML(_LEAD)
        with gr.Column(visible=False, elem_id="train-look-own") as out["look_own"]:  # a recorded run has no buttons
            with gr.Row(elem_id="train-look-head"):
                out["look_go"] = gr.Button("Look at the weights", elem_id="train-look-go", min_width=230, scale=0)
                out["look_stop"] = gr.Button("Stop", variant="stop", elem_id="train-look-stop", min_width=70, scale=0,
                                             interactive=False)  # fmt: skip
            out["look_cost"] = gr.HTML("", elem_id="train-look-cost")
            out["look_job"] = gr.HTML("", elem_id="train-look-job")
        out["look_status"] = gr.HTML(views.status(_LATER), elem_id="train-look-status")
        with gr.Column(visible=False, elem_id="train-look-view") as out["look_view"]:
            _landscape(out)
            _lines(out)
            _paper(out)
            _cosines(out)
            out["look_files"] = gr.HTML("", elem_id="train-look-files")


def _landscape(out: dict[str, Any]) -> None:
    gr.HTML(views.heading("The loss on the plane of three models, and the way of every run"))
    with gr.Row(equal_height=False):
        with gr.Column(min_width=320, scale=6):
            out["look_land"] = views.place("Loss landscape", "look-land")
        with gr.Column(min_width=300, scale=5):
            out["look_of"] = gr.Dropdown([("mean loss of all tasks", shown.MEAN)], value=shown.MEAN, label="Height",
                                         elem_id="look-of", filterable=False)  # fmt: skip
            out["look_cap"] = gr.Slider(0, 1, value=1, label="Colours end at a loss of", elem_id="look-cap", buttons=[])
            out["look_land_text"] = gr.Markdown("", elem_id="look-land-sentence")
            out["look_land_table"] = gr.HTML("", elem_id="look-land-table")


def _lines(out: dict[str, Any]) -> None:
    gr.HTML(views.heading("The loss on the straight line between two models"))
    with gr.Row(equal_height=False):
        with gr.Column(min_width=320, scale=6):
            out["look_line"] = gr.Dropdown([], label="From – to", elem_id="look-line", filterable=False)
            out["look_lines"] = views.place("Loss on the line between two models", "look-lines")
        _words(out, "lines")


def _paper(out: dict[str, Any]) -> None:
    gr.HTML(views.heading("The models on paper"))
    with gr.Row(equal_height=False):
        with gr.Column(min_width=320, scale=6):
            out["look_paper"] = views.place("Models in their two principal directions", "look-paper")
        _words(out, "paper")


def _cosines(out: dict[str, Any]) -> None:
    gr.HTML(views.heading("Cosines of task vectors, beside fair controls"))
    with gr.Row(equal_height=False):
        with gr.Column(min_width=320, scale=6):
            out["look_cosines"] = views.place("Mean absolute cosine of task vectors", "look-cosines")
        _words(out, "cosines")
    out["look_drift"] = gr.HTML("", elem_id="look-drift")
    out["look_shares"] = gr.HTML("", elem_id="look-shares")


def _words(out: dict[str, Any], name: str) -> None:
    """What stands beside a figure: its sentence and its table."""
    with gr.Column(min_width=300, scale=5):
        out[f"look_{name}_text"] = gr.Markdown("", elem_id=f"look-{name}-sentence")
        out[f"look_{name}_table"] = gr.HTML("", elem_id=f"look-{name}-table")


# ---- what is drawn ---------------------------------------------------------------------------------------------------


def everything(look: shown.Look | None) -> list[Any]:
    """All of ``_PIECES``: the controls as they are at first, every figure, sentence and table."""
    if not look:
        return [gr.update(visible=False), *views.skip(len(_PIECES) - 1)]
    lines = shown.lines(look)
    slider, top = _slider(look, shown.MEAN)
    surfaces = shown.surfaces(look)
    return [
        gr.update(visible=True), gr.update(choices=surfaces, value=shown.MEAN, visible="landscape" in look), slider,
        *shown.landscape(look, shown.MEAN, top),
        gr.update(choices=lines, value=0 if lines else None, visible=bool(lines)), *shown.barriers(look, 0),
        *shown.projection(look), *facts.orthogonality(look), facts.drift(look), facts.shares(look), shown.files(look),
    ]  # fmt: skip


def _slider(look: shown.Look, of: str) -> tuple[Any, float | None]:
    """Where the colours end, and the slider that says so."""
    found = shown.cap(look, of)
    if found is None:
        return gr.update(visible=False), None
    low, high, step, value = found
    return gr.update(minimum=low, maximum=high, step=step, value=value, visible=True), value


# ---- events ----------------------------------------------------------------------------------------------------------


def wire(page: Page, out: dict[str, Any]) -> None:
    """Needs what :mod:`.train_show` and :mod:`.train_follow` have put into ``out``."""
    _wire_view(out)
    runs = page.lab.runs
    head = [out[f"look{name}"] for name in ("", "_own", "_go", "_stop", "_cost", "_job", "_status", "_watch")]

    def choose_look(shows: str, opened: str | None, mine: Any, document: Any) -> list[Any]:
        """What is there of the run that is shown: what was recorded, or what a look at a visitor's own has found."""
        if shows == "recorded":
            return _recorded(page, opened)
        run = runs.find(mine)
        if run is None or run.status != "done":
            return [None, gr.update(visible=False), *views.skip(4), views.status(_LATER), gr.skip()]
        now = run.looking
        under = now is not None and not now.over
        cost = "" if run.look else facts.cost_line(facts.planned(document), document)
        said = views.status(_found(run.look)) if run.look else "" if under else _said(now)
        return [run.look, gr.update(visible=True), *_buttons(under), gr.skip() if under else cost,
                gr.skip() if under else "", said, _watching(run) if under else gr.skip()]  # fmt: skip

    def look_at(mine: Any) -> list[Any]:
        try:
            runs.look(mine)
        except Exception as error:
            return [views.status(sentence(error), "error"), *views.skip(2)]
        return [views.status("Getting ready …", "busy"), "", {"run": mine, "since": uuid.uuid4().hex}]

    def stop_look(mine: Any) -> Any:
        try:
            runs.stop_look(mine)
        except Exception as error:
            return views.status(sentence(error))
        return gr.skip()  # what comes of it the follower says

    async def follow_look(watch: Any) -> AsyncIterator[Any]:
        """How far a look is."""
        run = runs.find(watch["run"]) if watch else None
        now = run.looking if run is not None else None
        if run is None or now is None:
            yield views.skip(4)
            return
        seen: Any = None
        while not now.over:
            if seen != (now.step, now.cost):
                seen = (now.step, now.cost)
                line = busy(now.step) if now.step else views.status("Getting ready …", "busy")
                cost = facts.cost_line(now.cost, run.document) if now.cost is not None else gr.skip()
                yield [line, cost, *_buttons(True)]
            await asyncio.sleep(_TICK)
        yield ["", gr.skip(), *_buttons(False)]

    given = [out["shows"], out["opened"], out["mine"], out["document"]]
    out["document"].change(choose_look, given, head, trigger_mode="always_last", **CHEAP, **PRIVATE)
    out["followed"].then(choose_look, given, head, **CHEAP, **PRIVATE)
    out["look_go"].click(
        look_at, out["mine"], [out["look_job"], out["look_status"], out["look_watch"]], **CHEAP, **PRIVATE
    )
    out["look_stop"].click(stop_look, out["mine"], out["look_job"], queue=False, show_progress="hidden", **PRIVATE)
    out["look_watch"].change(
        follow_look, out["look_watch"], [out[f"look_{name}"] for name in ("job", "cost", "go", "stop")],
        trigger_mode="multiple", **FOLLOW, **PRIVATE,
    ).then(choose_look, given, head, **CHEAP, **PRIVATE)  # fmt: skip


def _wire_view(out: dict[str, Any]) -> None:
    def show_look(look: shown.Look | None) -> list[Any]:
        return everything(look)

    def show_height(look: shown.Look | None, of: str) -> list[Any]:
        """Another height, with colours of its own."""
        if not look:
            return views.skip(4)
        slider, top = _slider(look, of)
        return [slider, *shown.landscape(look, of, top)]

    def show_colours(look: shown.Look | None, of: str, top: float) -> Any:
        return shown.landscape(look, of, top)[0] if look else gr.skip()

    def show_line(look: shown.Look | None, place: int | None) -> list[Any]:
        return shown.barriers(look, place)[:2] if look else views.skip(2)

    pieces = [out[f"look_{name}"] for name in _PIECES]
    out["look"].change(show_look, out["look"], pieces, trigger_mode="always_last", **CHEAP, **PRIVATE)
    out["look_of"].input(
        show_height, [out["look"], out["look_of"]],
        [out[f"look_{name}"] for name in ("cap", "land", "land_text", "land_table")], **CHEAP, **PRIVATE,
    )  # fmt: skip
    out["look_cap"].release(
        show_colours, [out["look"], out["look_of"], out["look_cap"]], out["look_land"], trigger_mode="always_last",
        **CHEAP, **PRIVATE,
    )  # fmt: skip
    out["look_line"].input(
        show_line, [out["look"], out["look_line"]], [out["look_lines"], out["look_lines_text"]], **CHEAP, **PRIVATE
    )


def _recorded(page: Page, opened: str | None) -> list[Any]:
    try:
        found = page.lab.recorded_look(opened)
        said = views.status("Recorded with the run." if found else _NONE)
    except Exception as error:
        found, said = None, views.status(sentence(error), "error")
    return [found, gr.update(visible=False), *views.skip(4), said, gr.skip()]


def _buttons(under_way: bool) -> list[Any]:
    return [gr.update(interactive=not under_way), gr.update(interactive=under_way)]


def _found(look: shown.Look) -> str:
    took = f"Looked at in {look['seconds']:.0f} s"
    return f"{took}, on {shown.pictures(look)}." if look["items"] else f"{took}."


def _said(now: Looking | None) -> str:
    """Of a run that has no look."""
    if now is not None and now.said:
        return views.status(now.said, "error" if now.status == "failed" else "ok")
    return views.status("The weights of this run were not looked at yet.")


def _watching(run: Run) -> dict[str, str]:
    """Different each time, so that it counts as a change."""
    return {"run": run.name, "since": uuid.uuid4().hex}
