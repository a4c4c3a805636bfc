"""Representation Surgery on the Merge tab: how far features are from each expert's, before and after a correction."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from typing import Any

import gradio as gr

from .. import figures
from . import after_merge, views
from .data_panel import DATA, wished
from .jobs import Done, Work
from .page import CHEAP, PRIVATE, Page

_LEAD = (
    '<p class="ml-lead"><span class="ml-badge">needs unlabelled images</span><span class="ml-badge ml-loud">task id '
    "needed at inference</span> Whatever is merged above, its features drift away from each expert’s. A small "
    "correction of the last features, one for each task, brings them back (Representation Surgery).</p>"
)


def build(first: dict[str, Any]) -> dict[str, Any]:
    """The section below the tabs; closed until somebody wants it."""
    out: dict[str, Any] = {"found": gr.State(None)}
    with gr.Accordion("Representation Surgery on this merge", open=False, elem_id="surgery"):
        gr.HTML(_LEAD)
        with gr.Row(equal_height=False, elem_id="surgery-row"):
            out["examples"] = after_merge.examples_slider("surgery-examples")
            out["rank"] = gr.Slider(
                1, 64, value=16, step=1, label="Rank of the correction", interactive=True, min_width=220,
                elem_id="surgery-rank",
            )  # fmt: skip
            out["split"] = after_merge.split_radio("surgery-split")
        with gr.Row(equal_height=False, elem_id="surgery-buttons"):
            out["fit"] = gr.Button("Fit corrections", variant="primary", elem_id="surgery-fit", min_width=170, scale=0)
            out["stop"] = gr.Button("Stop", variant="stop", elem_id="surgery-stop", min_width=70, scale=0)
        out["status"] = gr.HTML("", elem_id="surgery-status")
        with gr.Column(visible=False, elem_id="surgery-after") as out["after"]:
            out["text"] = gr.Markdown("", elem_id="surgery-sentence")
            with gr.Row(equal_height=False):
                with gr.Column(min_width=320):
                    gr.HTML(views.heading("Distance to the expert’s features (representation bias)"))
                    out["bars"] = views.place("Distance to the expert's features, before and after", "surgery-bars")
                    out["table"] = gr.HTML("", elem_id="surgery-table")
                with gr.Column(min_width=320):
                    gr.HTML(views.heading("Features in two dimensions"))
                    out["task"] = gr.Dropdown(
                        first["tasks"], label="Task", value=next((t for _, t in first["tasks"]), None),
                        filterable=False, elem_id="surgery-task",
                    )  # fmt: skip
                    out["clouds"] = views.place(
                        "Features of the expert, the merge, and the corrected merge", "surgery-clouds"
                    )
                    out["cloud_text"] = gr.HTML("", elem_id="surgery-cloud-table")
    return out


def wire(page: Page, out: dict[str, Any]) -> None:
    def fit(  # noqa: PLR0917
        draft: Any, selection: dict[str, Any], examples: float, rank: float, split: str, request: gr.Request
    ) -> Iterator[Any]:
        """Merge what the tab shows, fit a correction for every task, measure with it."""

        def start() -> Work:
            recipe, count = page.recipe(draft, selection), wished(examples)
            page.lab.check_sources(recipe)
            return lambda progress, stop: page.lab.data(selection).surgery(
                recipe, examples=count, rank=int(rank), split=split, per_task=page.settings.per_task,
                progress=progress, stop=stop,
            )  # fmt: skip

        def show(item: Done) -> list[Any]:
            found = {**item.value, "titles": page.titles(selection)}
            tasks = [(found["titles"].get(task, task), task) for task in found["tasks"]]
            said = views.status(f"Fitted and measured in {item.seconds:.0f} s. {found['data_used']}.")
            return [said, found, gr.update(visible=True), gr.update(choices=tasks, value=tasks[0][1])]

        yield from after_merge.follow(page, request, start, show, what="Surgery:", others=3)

    stale = after_merge.staleness(page, "The merge has changed since: fit again for its corrections.")
    given = [page.draft, page.selection, out["examples"], out["rank"], out["split"]]
    out["fit"].click(fit, given, [out["status"], out["found"], out["after"], out["task"]], **DATA, **PRIVATE)
    out["stop"].click(
        after_merge.stopper(page), None, out["status"], queue=False, show_progress="hidden", **PRIVATE
    )  # fmt: skip
    out["found"].change(bias_view, out["found"], [out["text"], out["bars"], out["table"]], **CHEAP, **PRIVATE).then(
        cloud_view, [out["found"], out["task"]], [out["clouds"], out["cloud_text"]], **CHEAP, **PRIVATE
    )
    out["task"].input(cloud_view, [out["found"], out["task"]], [out["clouds"], out["cloud_text"]], **CHEAP, **PRIVATE)
    page.draft.change(stale, [out["found"], page.draft, page.selection], out["status"], **CHEAP, **PRIVATE)


def bias_view(found: Mapping[str, Any] | None) -> list[Any]:
    """Sentence, bars and table of distances, with the accuracies they lead to."""
    if not found:
        return views.skip(3)
    titles, bias = found["titles"], found["bias"]
    before, after = ({t: _held(bias[t], end) for t in found["tasks"]} for end in ("before", "after"))
    rows = [
        {"series": name, "role": role, "title": titles.get(task, task), "bias": values[task]}
        for name, role, values in (("merged", "merged", before), ("corrected", "kept", after))
        for task in found["tasks"]
    ]
    figure = figures.accuracy_bars(rows, value="bias", axis="mean absolute distance", height=340)
    body, lines = [], []
    for task in found["tasks"]:
        score = found["accuracy"][task]
        body.append(
            [html.escape(titles.get(task, task)), f"{before[task]:.3f}", f"<b>{after[task]:.3f}</b>",
             *after_merge.accuracy_cells(score)]
        )  # fmt: skip
        lines.append([task, bias[task]["before"], bias[task]["after"], bias[task].get("held_out_before"),
                      bias[task].get("held_out_after"), score["n"], score["before"], score["after"]])  # fmt: skip
    sums = [after_merge.mean(list(values.values())) for values in (before, after)]
    body.append(["Mean", f"{sums[0]:.3f}", f"<b>{sums[1]:.3f}</b>", *after_merge.mean_cells(found["accuracy"])])
    head = ["Task", "Distance", "corrected", "Accuracy %", "corrected, told the task"]
    columns = ["task", "fitted before", "fitted after", "held out before", "held out after", "n", "accuracy before",
               "accuracy after"]  # fmt: skip
    file = views.link("Numbers as CSV", views.to_csv(columns, lines), "mergelab-surgery.csv")
    caption = f"Distances on held-out {found['split']} images; accuracy on {found['per_task']} test images a task"
    table = views.table(head, body, caption, summary_from=len(found["tasks"])) + f'<p class="ml-files">{file}</p>'
    shown = {titles.get(t, t): before[t] for t in before}, {titles.get(t, t): after[t] for t in after}
    return [figures.describe_bias(*shown), views.plot(figure, "surgery"), table]


def cloud_view(found: Mapping[str, Any] | None, task: str | None) -> list[Any]:
    """The three clouds of one task, and the middles of them as a table."""
    if not found or task not in found["projections"]:
        return views.skip(2)
    one = found["projections"][task]
    body = []
    for name, points in one["points"].items():
        middle = [sum(point[axis] for point in points) / len(points) for axis in (0, 1)]
        body.append([html.escape(name), str(len(points)), *(f"{value:.2f}" for value in middle)])
    lines = [[name, *point] for name, points in one["points"].items() for point in points]
    file = views.link("Points as CSV", views.to_csv(["cloud", "x", "y"], lines), "mergelab-features.csv")
    caption = f"Middles of the clouds; the two directions hold {sum(one['explained']):.0%} of the variance"
    table = views.table(["Cloud", "Pictures", "x", "y"], body, caption) + f'<p class="ml-files">{file}</p>'
    return [views.plot(figures.clouds(one["points"]), "features"), table]


def _held(bias: Mapping[str, float], end: str) -> float:
    """On held-out pictures where there are some."""
    return float(bias.get(f"held_out_{end}", bias[end]))
