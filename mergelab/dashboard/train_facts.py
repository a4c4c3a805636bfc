"""What a round was like, and what runs cost: tables and sentences of the Train tab. Pure functions."""

from __future__ import annotations

import html
import string
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .. import figures
from . import views
from .data_views import time_text
from .train_views import NAMES, Document, last_round, main, mean, point_at

if TYPE_CHECKING:
    from .train_run import Run

_ALL = "all"
INTRO = """<ul class="ml-list ml-intro">
<li><b>The curve:</b> accuracy of every task and their mean against epochs, beside joint training on as many pictures,
the experts (dashed) and the base (dotted).</li>
<li><b>Every round:</b> move through the rounds: numbers, radar, the loss that a round started from, how the tasks’
vectors lie.</li>
<li><b>Elsewhere:</b> the current model is a row on the Results tab, answers on the Predict tab, and its task vectors
are on the Geometry tab, after every round.</li>
<li><b>Nothing is lost:</b> pause it, or close the page; finished rounds are kept, and it goes on from there.</li>
</ul>"""


def facts_view(document: Document | None, place: int) -> str:
    """Where every task's course of a round started, how steep it was, how far it went, how long it took."""
    number = min(place, last_round(document))
    if not document or number < 1:
        return views.note("Move the slider to a round: its losses, gradients and task vectors are shown here.")
    record = main(document)
    epochs = record["points"][number]["epochs"] if number < len(record["points"]) else None
    body: list[list[str]] = []
    for at, (kind, other) in enumerate(document["runs"].items()):
        point = point_at(other, epochs) if epochs is not None else None
        each = other["rounds"][point["round"] - 1] if point and 0 < point["round"] <= len(other["rounds"]) else None
        if each is None or (at and kind == "one_shot"):
            continue
        for task, log in each["courses"].items():
            name = "all tasks at once" if task == _ALL else other["titles"].get(task, task)
            body.append(
                [html.escape(name if not at else f"{NAMES.get(kind, kind)}: {name}"), *_course(log, each, task)]
            )
    head = ["Course", "Loss it started from", "Loss while training", "Gradient norm", "Length of τ", "Seconds"]
    return views.table(head, body, f"Round {number}: what training each task was like")


def _course(log: Mapping[str, Any], each: Mapping[str, Any], task: str) -> list[str]:
    last = log["epochs"][-1] if log.get("epochs") else {}
    losses = last.get("losses") or {}
    moved = (each.get("norms") or {}).get(task, last.get("moved"))
    numbers = [log.get("start_loss"), mean(losses) if losses else None, last.get("norm"), moved]
    return [*map(_number, numbers), f"{log.get('seconds', 0):.1f}"]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def cosines_of(document: Document | None, place: int) -> Mapping[str, Any] | None:
    """How a round's task vectors lie, in the form of :func:`cosine_view`; None where there are none."""
    number = min(place, last_round(document))
    if not document or number < 1:
        return None
    record = main(document)
    each = record["rounds"][number - 1]
    if not each.get("cosines"):
        return None
    return {"round": number, "tasks": record["tasks"], "titles": record["titles"], "cosines": each["cosines"],
            "norms": each.get("norms") or {}}  # fmt: skip


def cosine_view(found: Mapping[str, Any] | None) -> list[Any]:
    """Heat map, sentence and table of the cosines and lengths of a round's task vectors."""
    if not found:
        return [None, "Joint training has no task vectors of single tasks.", ""]
    names = [found["titles"].get(task, task) for task in found["tasks"]]
    numbers = [[float("nan") if value is None else value for value in row] for row in found["cosines"]]
    body = [
        [html.escape(name), *(views.decimals(value) for value in row),
         _number(found["norms"].get(task))]
        for name, task, row in zip(names, found["tasks"], found["cosines"], strict=True)
    ]  # fmt: skip
    caption = f"Task vectors of round {found['round']}: cosine similarity, and length"
    lines = [[task, *row, found["norms"].get(task)] for task, row in zip(found["tasks"], found["cosines"], strict=True)]
    file = views.link("Cosines as CSV", views.to_csv(["task vector", *found["tasks"], "length"], lines),
                      "mergelab-training-cosines.csv")  # fmt: skip
    head = ["Task vector", *map(html.escape, names), "Length"]
    table = views.table(head, body, caption) + f'<p class="ml-files">{file}</p>'
    text = figures.describe_cosines(names, numbers)
    return [views.plot(figures.cosine_heatmap(names, numbers, height=360), "training-cosines"), text, table]


# ---- what it costs ---------------------------------------------------------------------------------------------------


def cost_line(found: Mapping[str, Any], beside: tuple[str, ...]) -> str:
    """Before the start: samples, time, memory, bytes sent."""
    counts = sorted(set(found["items"].values()))
    many = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    parts = f", {found['parts']} runs in all" if found["parts"] > 1 else ""
    text = (
        f"{found['tasks']} tasks, {many} pictures each, {found['rounds']} rounds{parts}: {found['samples']:,} "
        f"pictures pass, about {time_text(found['seconds'])} here (from one timed step); "
        f"{_bytes(found['memory_bytes'])} of memory, {_bytes(found['disk_bytes'])} of disk while it runs."
    )
    if found["sent_bytes"]:
        text += f" If each task were another machine: {_bytes(found['sent_bytes'])} of weights sent, no picture."
    if "one_shot" in beside:
        text += " One-shot merges are tried on held validation items."
    return f'<p class="ml-cost">{html.escape(text)}</p>'


def costs_view(document: Document | None) -> str:
    """What each run has cost, and which data it looked at."""
    if not document or not document["runs"]:
        return ""
    body, letters, notes = [], *_lettered([record["data_used"] for record in document["runs"].values()])
    for (kind, record), letter in zip(document["runs"].items(), letters, strict=True):
        cost = record["costs"]
        body.append([
            html.escape(NAMES.get(kind, kind)), f"{cost.get('samples', 0):,}", _seconds(cost.get("training_seconds")),
            _seconds(cost.get("wall_seconds")), _bytes(cost.get("peak_bytes")), _bytes(cost.get("sent_bytes")),
            letter,
        ])  # fmt: skip
    head = ["Run", "Pictures passed", "Training, s", "In all, s", "Most memory", "Weights sent", "Data"]
    return views.table(head, body, "What it cost so far, and the data that was looked at") + notes


def whole_table(document: Document | None, titles: Mapping[str, str]) -> str:
    """The comparison's own table: everything at its end, with intervals. ``titles``: of methods."""
    if not document or not document.get("table"):
        return ""
    body, tasks, known = [], main(document)["tasks"], main(document)["titles"]
    letters, notes = _lettered([str(row.get("data", "")) for row in document["table"]])
    for row, letter in zip(document["table"], letters, strict=True):
        ends = row.get("interval")
        around = f" <small>{100 * ends[0]:.1f}–{100 * ends[1]:.1f}</small>" if ends else ""
        each = [views.percent(row["accuracy"].get(task)) for task in tasks]
        samples = row.get("samples")
        method, rest = str(row["name"]).partition(" ")[::2]
        name = html.escape(f"{titles.get(method, method)} {rest}".strip())
        body.append([name, f"<b>{views.percent(row['mean'])}</b>{around}",
                     views.meter(row.get("normalised")), *each, "–" if samples is None else f"{samples:,}",
                     _seconds(row.get("training_seconds")), letter])  # fmt: skip
    head = ["Model", "Mean, 95 %", "/ Expert", *(html.escape(known.get(t, t)) for t in tasks), "Pictures", "s", "Data"]
    lines = [[row["name"], row["mean"], *(row.get("interval") or (None, None)), row.get("normalised"),
              *(row["accuracy"].get(t) for t in tasks), row.get("samples"), row.get("data")]
             for row in document["table"]]  # fmt: skip
    columns = ["model", "mean", "low", "high", "normalised", *tasks, "samples", "data"]
    file = views.link("Table as CSV", views.to_csv(columns, lines), "mergelab-training-table.csv")
    return views.table(head, body, "Accuracy in % at the end") + notes + f'<p class="ml-files">{file}</p>'


def _lettered(texts: Sequence[str]) -> tuple[list[str], str]:
    """A letter for every different text, and the texts below the table: in it they would make its rows tall."""
    known = list(dict.fromkeys(text for text in texts if text))
    letters = [string.ascii_lowercase[known.index(text) % 26] if text else "–" for text in texts]
    lines = "; ".join(f"{string.ascii_lowercase[at % 26]}: {text}" for at, text in enumerate(known))
    return letters, f'<p class="ml-cost">{html.escape(f"Data used. {lines}.")}</p>' if known else ""


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"


def _bytes(count: float | None) -> str:
    if not count:
        return "–"
    return (
        f"{count / 1e9:.1f} GB"
        if count >= 1e9
        else f"{count / 1e6:.0f} MB"
        if count >= 1e6
        else f"{count / 1e3:.0f} kB"
    )


# ---- a run under way -------------------------------------------------------------------------------------------------


def run_line(run: Run) -> str:
    """The status line of a run."""
    done = last_round(run.document)
    total = run.recipe["budget"]["rounds"]
    if run.status == "running":
        return _busy(run)
    if run.status == "done":
        return views.status(f"Done: {done} of {total} rounds. {run.said}".strip())
    if run.status == "failed":
        return views.status(f"{run.said} Finished rounds: {done} of {total}.", "error")
    return views.status(run.said)


def _busy(run: Run) -> str:
    step = run.step
    if run.said in ("pausing", "stopping"):
        return views.status(f"{run.said.capitalize()} …", "busy")
    if step is None:
        return views.status("Starting …", "busy")
    text = step.text
    for kind, name in NAMES.items():
        text = text.replace(f"{kind}: ", f"{name}: ", 1) if text.startswith(f"{kind}: ") else text
    titles = main(run.document)["titles"] if run.document and run.document["runs"] else {}
    for task, title in titles.items():
        text = text.replace(f", {task}: ", f", {title}: ")
    left = run.left()
    after = f" … about {time_text(left)} left" if left is not None else " …"
    return views.status(text[:1].upper() + text[1:] + after, "busy", step.done, step.total)
