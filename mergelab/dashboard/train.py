"""The Train tab: tune every task and merge, again and again; watch it, and compare it at equal samples."""

from __future__ import annotations

from typing import Any

import gradio as gr

from . import (
    train_events,
    train_facts,
    train_feeds,
    train_follow,
    train_form,
    train_look,
    train_merging,
    train_show,
    train_theorem,
    views,
)
from .page import Page

_LEAD = (
    '<p class="ml-lead">Merging can be done again and again while training: tune a copy of the model on each task, '
    "merge the copies, and go on from the merge. Press Start and watch; or open the recorded run and move through its "
    "rounds.</p>"
)
#: What a short run on two cores starts with: two rounds, three tasks, done in less than two minutes.
USUAL: dict[str, Any] = {
    "what": "atm", "rounds": 2, "unit": "epochs", "length": 1, "method": "mean", "parameters": {}, "scale": 1.0,
    "start": "base", "images": 128, "tune": "full", "rate": None, "optimiser": "adamw", "batch": 16, "seed": 0,
    "joint": True, "one_shot": False,
}  # fmt: skip
_USUAL_TASKS = 3
_OPTIMISERS = [("AdamW", "adamw"), ("Adam", "adam"), ("SGD", "sgd"), ("SGD with momentum", "momentum"),
               ("Gradient descent, one step an epoch", "gd")]  # fmt: skip


def build(
    page: Page, first: dict[str, Any], results: dict[str, Any], tab: gr.Tab, *, current: gr.State,
    mine: gr.BrowserState,
) -> None:  # fmt: skip
    """Lay the tab out. ``results``: what the Results tab offers for showing a result there; ``current``: the model of
    the visitor's run after its last round, which other tabs look at; ``mine``: the run's name, which their browser
    remembers."""
    states = {name: gr.State(None) for name in ("live", "document", "watch", "result", "priced")}
    states |= {"shows": gr.State("run"), "held": gr.State(False)}  # or "recorded"; whether a person put the slider back
    states["parameters"] = gr.State(USUAL["parameters"])  # of the method that merges a round
    states["opened"] = gr.State(None)  # the name of the recorded run that is shown
    out: dict[str, Any] = {**states, "current": current, "mine": mine, "tab": tab}
    gr.HTML(_LEAD)
    with gr.Row(elem_id="train-row", equal_height=False):
        with gr.Column(scale=6, min_width=290, elem_id="train-left"):
            _what(page, first, out)
            _training(out)
        with gr.Column(scale=15, min_width=320, elem_id="train-view"):
            _start(page, out)
            out["cost"] = gr.HTML("", elem_id="train-cost")
            out["status"] = gr.HTML(views.status("Nothing is trained yet."), elem_id="train-status")
            out["intro"] = gr.HTML(train_facts.INTRO, elem_id="train-intro")
            with gr.Column(visible=False, elem_id="train-after") as out["after"]:
                _after(out)
            train_theorem.build(page, first, out)
    train_events.wire(page, out)
    train_follow.wire(page, out)
    train_show.wire(page, out)
    train_feeds.wire(page, out, results)
    train_look.wire(page, out)
    train_theorem.wire(page, out)


def _what(page: Page, first: dict[str, Any], out: dict[str, Any]) -> None:
    kinds = [(title, name) for name, (title, _) in train_form.KINDS.items()]
    out["what"] = gr.Dropdown(
        kinds, value=USUAL["what"], label="What to do", info=train_form.KINDS[USUAL["what"]][1], elem_id="train-what",
        filterable=False,
    )  # fmt: skip
    out["data"] = gr.HTML(train_events.data_line("base"), elem_id="train-data")
    names = [name for _, name in first["tasks"]]
    out["tasks"] = gr.CheckboxGroup(
        first["tasks"], value=names[:_USUAL_TASKS], label="Tasks", elem_id="train-tasks", interactive=True
    )
    with gr.Row(elem_id="train-budget", equal_height=True):
        out["rounds"] = gr.Number(USUAL["rounds"], precision=0, label="Rounds", elem_id="train-rounds",
                                  min_width=66)  # fmt: skip
        out["length"] = gr.Number(USUAL["length"], precision=0, label="of", elem_id="train-length",
                                  min_width=60)  # fmt: skip
        out["unit"] = gr.Dropdown(train_form.UNITS, value=USUAL["unit"], label="each", elem_id="train-unit",
                                  filterable=False, min_width=118)  # fmt: skip
    with gr.Column(elem_id="train-merging", min_width=0) as out["merging"]:
        found = train_form.notches(USUAL)
        place = train_form.place_of(USUAL, found)
        out["every"] = gr.Slider(
            0, len(found) - 1, value=place, step=1, label=f"Merge {found[place].words}", interactive=True, buttons=[],
            elem_id="train-every", info="Left: after every step. Right: once, at the end. The budget stays the same.",
        )  # fmt: skip
        out["note"] = gr.HTML(views.note(train_form.merge_note(found, place, USUAL["scale"])), elem_id="train-note")
        out["method"] = gr.Dropdown(
            train_form.aggregations(page.methods), value=USUAL["method"], label="Merged with", elem_id="train-method",
            filterable=False,
        )  # fmt: skip
        train_merging.build(page, out)
        out["scale"] = gr.Slider(
            0.1, 2, value=USUAL["scale"], step=0.05, label="α: how far towards the merge", elem_id="train-scale"
        )
    out["start"] = gr.Radio(train_form.STARTS, value=USUAL["start"], label="From", elem_id="train-start")
    out["images"] = gr.Slider(8, 1000, value=USUAL["images"], step=8, label="Pictures a task", elem_id="train-images")


def _training(out: dict[str, Any]) -> None:
    with gr.Accordion("Training", open=False, elem_id="train-training"):
        out["tune"] = gr.Radio([("all weights", "full"), ("LoRA", "lora")], value=USUAL["tune"], label="Tune",
                               elem_id="train-tune")  # fmt: skip
        out["rate"] = gr.Number(
            USUAL["rate"], label="Learning rate", elem_id="train-rate",
            info="Empty: 3e-5 for all weights, 1e-3 for LoRA, 0.05 without Adam.",
        )  # fmt: skip
        out["optimiser"] = gr.Dropdown(_OPTIMISERS, value=USUAL["optimiser"], label="Optimiser", filterable=False,
                                       elem_id="train-optimiser")  # fmt: skip
        out["batch"] = gr.Slider(1, 128, value=USUAL["batch"], step=1, label="Pictures a step", elem_id="train-batch")
        out["seed"] = gr.Number(USUAL["seed"], precision=0, label="Seed", elem_id="train-seed")
    out["joint"] = gr.Checkbox(
        USUAL["joint"], label="Joint training beside it, on as many pictures", elem_id="train-joint"
    )
    out["one_shot"] = gr.Checkbox(
        USUAL["one_shot"], label="One-shot merges of experts trained as long", elem_id="train-one-shot"
    )


def _start(page: Page, out: dict[str, Any]) -> None:
    recorded = page.lab.recordings()
    with gr.Row(elem_id="train-head", equal_height=False):
        out["go"] = gr.Button("Start", variant="primary", elem_id="train-go", min_width=110, scale=0)
        out["pause"] = gr.Button("Pause", elem_id="train-pause", min_width=80, scale=0, interactive=False)
        out["resume"] = gr.Button("Resume", elem_id="train-resume", min_width=90, scale=0, interactive=False)
        out["stop"] = gr.Button("Stop", variant="stop", elem_id="train-stop", min_width=70, scale=0, interactive=False)
        with gr.Row(visible=bool(recorded), elem_id="train-recorded", equal_height=False):
            out["recording"] = gr.Dropdown(
                [(title, name) for name, title in recorded.items()], value=next(iter(recorded), None),
                label="Recorded run", show_label=False, container=False, elem_id="train-recording", filterable=False,
                min_width=150,
            )  # fmt: skip
            out["open"] = gr.Button("Open recorded run", elem_id="train-open", min_width=200, scale=0)
        out["own"] = gr.Button("Back to your run", visible=False, elem_id="train-own", min_width=160, scale=0)


def _after(out: dict[str, Any]) -> None:
    out["text"] = gr.Markdown("", elem_id="train-sentence")
    with gr.Row(equal_height=False):
        with gr.Column(min_width=320):
            gr.HTML(views.heading("Accuracy against epochs a task, at as many pictures"))
            out["curves"] = views.place("Accuracy against epochs a task", "train-curves")
            out["shown"] = gr.CheckboxGroup([], value=[], label="Lines of tasks", elem_id="train-shown")
        with gr.Column(min_width=320):
            out["place"] = gr.Slider(
                0, 1, value=0, step=1, label="Round", interactive=True, elem_id="train-place", buttons=[],
                info="Move it: the numbers, the radar and what the round was like follow.",
            )  # fmt: skip
            out["table"] = gr.HTML("", elem_id="train-table")
            out["merges"] = gr.HTML("", elem_id="train-merges")
    out["files"] = gr.HTML("", elem_id="train-files")
    with gr.Row(equal_height=False):
        with gr.Column(min_width=320):
            gr.HTML(views.heading("Accuracy relative to each task’s expert"))
            out["radar"] = views.place("Accuracy relative to each task's expert", "train-radar")
        with gr.Column(min_width=320):
            gr.HTML(views.heading("Cosine similarity of the round’s task vectors"))
            out["cosines"] = views.place("Cosine similarity of the round's task vectors", "train-cosines")
    out["cosine_text"] = gr.Markdown("", elem_id="train-cosine-sentence")
    out["cosine_table"] = gr.HTML("", elem_id="train-cosine-table")
    out["facts"] = gr.HTML("", elem_id="train-facts")
    out["costs"] = gr.HTML("", elem_id="train-costs")
    out["whole"] = gr.HTML("", elem_id="train-whole")
    train_look.build(out)
