"""The Router tab: a shared model, what each expert has beyond it, and a router that mixes both for every picture."""

from __future__ import annotations

from typing import Any

import gradio as gr

from . import pictures, router_costs, router_events, router_pictures, router_work, views
from .page import Page
from .router_views import HEADS, INTRO, MODES

_LEAD = (
    '<p class="ml-lead">A routed model keeps one shared model, a small exclusive part of every expert, and a router '
    "that looks at each picture and mixes the parts for it (Twin-Merging). Press Build to make one from the recipe on "
    "the Merge tab; then see where the router sends what, and what every rank costs.</p>"
)
_POLICIES = [("a rank", "rank"), ("a share of the rank", "rank_ratio"), ("a share of the energy", "energy")]


def build(page: Page, first: dict[str, Any], results: dict[str, Any]) -> None:
    """Lay the tab out; ``results`` is what the Results tab offers for showing a result there."""
    out: dict[str, Any] = {"built": gr.State(None), "found": gr.State(None), "curve": gr.State(None),
                           "looked": gr.State(None), "hand": gr.State(None), "seed": gr.State(0)}  # fmt: skip
    gr.HTML(_LEAD)
    with gr.Row(elem_id="router-row", equal_height=False):
        with gr.Column(scale=5, min_width=280, elem_id="router-left"):
            _panel(page, first, out)
        with gr.Column(scale=15, min_width=320, elem_id="router-view"):
            out["status"] = gr.HTML(views.status("Nothing is built yet."), elem_id="router-status")
            out["badges"] = gr.HTML("", elem_id="router-badges")
            out["intro"] = gr.HTML(INTRO, elem_id="router-intro")
            with gr.Column(visible=False, elem_id="router-after") as out["after"]:
                _after(page, first, out)
    router_events.wire(page, out, results)
    router_costs.wire(page, out)
    router_pictures.wire(page, out)


def _panel(page: Page, first: dict[str, Any], out: dict[str, Any]) -> None:
    start = router_work.preset_options("default")
    out["shared"] = gr.HTML(
        router_events.shared_words(page, first["draft"], first["selection"]), elem_id="router-shared"
    )
    out["preset"] = gr.Dropdown(
        router_work.presets(), value="default", label="Preset", info=start["text"], elem_id="router-preset",
        filterable=False,
    )  # fmt: skip
    out["policy"] = gr.Radio(
        _POLICIES, value=start["policy"], label="Of each expert’s matrices keep", elem_id="router-policy"
    )
    shown = start["policy"]
    out["rank"] = gr.Slider(0, 64, value=start["rank"], step=1, label="Rank of every matrix", visible=shown == "rank",
                            elem_id="router-keep-rank")  # fmt: skip
    out["rank_ratio"] = gr.Slider(0.01, 1, value=start["rank_ratio"], step=0.01, label="Share of the rank",
                                  visible=shown == "rank_ratio", elem_id="router-keep-ratio")  # fmt: skip
    out["energy"] = gr.Slider(0.1, 1, value=start["energy"], step=0.01, label="Share of the squared singular values",
                              visible=shown == "energy", elem_id="router-keep-energy")  # fmt: skip
    with gr.Accordion("Router and gate", open=False, elem_id="router-gate"):
        out["router"] = gr.Dropdown(
            [("small network, trained (as in the paper)", "mlp"), ("nearest task mean, no training", "centroid"),
             ("nearest neighbours, no training", "knn"), ("none: all weights alike", "uniform")],
            value="mlp", label="Router", elem_id="router-kind", filterable=False,
        )  # fmt: skip
        out["temperature"] = gr.Slider(
            0.1, 5, value=1, step=0.1, label="Temperature", info="Above 1 the weights spread, below 1 they sharpen.",
            elem_id="router-temperature",
        )  # fmt: skip
        out["top_k"] = gr.Slider(
            0, page.settings.max_models, value=0, step=1, label="Top-k", info="Keep the k largest; 0 keeps all.",
            elem_id="router-top-k",
        )  # fmt: skip
        out["threshold"] = gr.Slider(
            0, 1, value=0, step=0.01, label="Confidence threshold", elem_id="router-threshold",
            info="Where no weight reaches it, the shared model answers alone.",
        )  # fmt: skip
    out["cost"] = gr.HTML("", elem_id="router-cost")
    with gr.Row(elem_id="router-buttons"):
        out["build"] = gr.Button("Build", variant="primary", elem_id="router-build", min_width=120)
        out["stop"] = gr.Button("Stop", variant="stop", elem_id="router-stop", min_width=70, scale=0)


def _after(page: Page, first: dict[str, Any], out: dict[str, Any]) -> None:
    with gr.Row(elem_id="router-how", equal_height=False):
        out["head"] = gr.Dropdown(
            [(title, name) for name, (title, _) in HEADS.items()], value="router_argmax", label="Whose head reads",
            elem_id="router-head", filterable=False, min_width=220,
        )  # fmt: skip
        out["mode"] = gr.Dropdown(
            [(title, name) for name, title in MODES.items()], value="auto", label="How it runs", elem_id="router-mode",
            filterable=False, min_width=220,
        )  # fmt: skip
    out["sentence"] = gr.Markdown("", elem_id="router-sentence")
    with gr.Tabs(elem_id="router-tabs", overflow_behavior="wrap"):
        with gr.Tab("Routing", id="routing", elem_id="router-tab-routing"):
            _routing(out)
        with gr.Tab("Rank", id="rank", elem_id="router-tab-rank") as out["rank_tab"]:
            _rank(out)
        with gr.Tab("One picture", id="picture", elem_id="router-tab-picture"):
            _picture(page, first, out)
        with gr.Tab("Mixed batch", id="batch", elem_id="router-tab-batch") as out["batch_tab"]:
            _batch(out)
        with gr.Tab("Storage and time", id="costs", elem_id="router-tab-costs"):
            _costs(out)


def _routing(out: dict[str, Any]) -> None:
    out["table"] = gr.HTML("", elem_id="router-table")
    with gr.Row(equal_height=False, elem_id="router-actions"):
        out["whole"] = gr.Button(
            "Whole test sets, unseen tasks too", size="sm", elem_id="router-whole", min_width=220, scale=0
        )
        out["show"] = gr.Button("Compare on the Results tab", size="sm", elem_id="router-show", min_width=200, scale=0)
        out["shown"] = gr.HTML("", elem_id="router-shown")
    with gr.Row(equal_height=False):
        with gr.Column(min_width=320):
            gr.HTML(views.heading("Mean router weight, tasks by experts"))
            out["weights"] = views.place("Mean router weight, tasks by experts", "router-weights")
            out["weights_text"] = gr.Markdown("", elem_id="router-weights-sentence")
        with gr.Column(min_width=320):
            gr.HTML(views.heading("Router’s first choice, share of pictures"))
            out["confusion"] = views.place("Router's first choice, share of pictures", "router-confusion")
            out["confusion_text"] = gr.Markdown("", elem_id="router-confusion-sentence")
    out["weights_table"] = gr.HTML("", elem_id="router-weights-table")
    out["confusion_table"] = gr.HTML("", elem_id="router-confusion-table")
    out["split"] = gr.Markdown("", elem_id="router-split")


def _rank(out: dict[str, Any]) -> None:
    out["rank_status"] = gr.HTML("", elem_id="router-rank-status")
    with gr.Row(equal_height=False):
        with gr.Column(min_width=320):
            out["place"] = gr.Slider(
                0, 9, value=0, step=1, label="Rank", interactive=True, visible=False, elem_id="router-rank",
                info="Move it: accuracy and bytes follow at once.", buttons=[],
            )  # fmt: skip
            out["rank_figure"] = views.place("Accuracy and bytes by rank", "router-rank-figure")
        with gr.Column(min_width=320):
            out["rank_text"] = gr.Markdown("", elem_id="router-rank-sentence")
            out["rank_table"] = gr.HTML("", elem_id="router-rank-table")
            out["rank_tasks"] = gr.HTML("", elem_id="router-rank-tasks")


def _picture(page: Page, first: dict[str, Any], out: dict[str, Any]) -> None:
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=300):
            out["inputs"] = pictures.build(first, "router-", "Task: what the oracle head is told")
            gr.HTML(views.heading("Weights of the parts"))
            out["hand_note"] = gr.HTML(router_pictures.HINT, elem_id="router-hand-note")
            with gr.Column(elem_id="router-hands"):
                out["hands"] = [
                    gr.Slider(0, 1, value=0, step=0.01, label=f"Expert {i + 1}", interactive=True, visible=False,
                              elem_id=f"router-hand-{i}", elem_classes="ml-hand")
                    for i in range(page.settings.max_models)
                ]  # fmt: skip
            out["normalise"] = gr.Checkbox(False, label="Divide them by their sum", elem_id="router-normalise")
            with gr.Row():
                out["router_back"] = gr.Button(
                    "The router’s weights", size="sm", elem_id="router-hand-router", min_width=120
                )
                out["zero"] = gr.Button("All zero: shared model", size="sm", elem_id="router-hand-zero", min_width=120)
        with gr.Column(scale=8, min_width=320):
            out["look_status"] = gr.HTML("", elem_id="router-look-status")
            with gr.Row(equal_height=False):
                with gr.Column(scale=1, min_width=150):
                    out["card"] = gr.HTML("", elem_id="router-picture")
                with gr.Column(scale=3, min_width=200):
                    out["look_text"] = gr.Markdown("", elem_id="router-look-sentence")
            with gr.Row(equal_height=False):
                with gr.Column(min_width=280):
                    gr.HTML(views.heading("Weight of each expert’s part"))
                    out["look_weights"] = views.place("Weight of each expert's part", "router-look-weights")
                with gr.Column(min_width=280):
                    gr.HTML(views.heading("Class probabilities"))
                    out["look_classes"] = views.place("Class probabilities", "router-look-classes")
            out["look_table"] = gr.HTML("", elem_id="router-look-table")


def _batch(out: dict[str, Any]) -> None:
    with gr.Row(equal_height=False):
        out["per_bin"] = gr.Slider(1, 6, value=1, step=1, label="Groups in each bin (one first choice)",
                                   elem_id="router-per-bin", min_width=240)  # fmt: skip
        out["another"] = gr.Button("Another batch", size="sm", elem_id="router-another", min_width=140, scale=0)
    out["batch_status"] = gr.HTML("", elem_id="router-batch-status")
    out["batch_text"] = gr.Markdown("", elem_id="router-batch-sentence")
    out["batch_cards"] = gr.HTML("", elem_id="router-batch")
    out["batch_table"] = gr.HTML("", elem_id="router-batch-table")


def _costs(out: dict[str, Any]) -> None:
    with gr.Row(equal_height=False):
        with gr.Column(min_width=320):
            gr.HTML(views.heading("Bytes stored against the number of tasks"))
            out["storage"] = views.place("Bytes stored against the number of tasks", "router-storage")
            out["storage_text"] = gr.Markdown("", elem_id="router-storage-sentence")
            out["storage_table"] = gr.HTML("", elem_id="router-storage-table")
        with gr.Column(min_width=320):
            gr.HTML(views.heading("Time a picture, by mode and batch size"))
            out["time"] = gr.Button("Measure here, now (about 20 s)", elem_id="router-time")
            out["time_status"] = gr.HTML("", elem_id="router-time-status")
            out["latency"] = views.place("Time a picture, by mode and batch size", "router-latency")
            out["latency_text"] = gr.Markdown("", elem_id="router-latency-sentence")
            out["latency_table"] = gr.HTML("", elem_id="router-latency-table")
