"""From results (plain dicts) to what the page shows: rows for figures, tables, sentences. Pure functions.

A *result* is ``{"id", "label", "method", "recipe": dict, "hash", "evaluation", "base", "experts": evaluation dicts or
None, "titles": {task: title}, "per_task": items or None for whole test sets, "tuned": bool, "seconds"}``.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr
import numpy as np
from gradio.components.plot import PlotData
from PIL import Image

from .. import figures

Result = dict[str, Any]
Row = dict[str, Any]


# ---- rows -----------------------------------------------------------------------------------------------------------


def rows_of(evaluation: Mapping[str, Any] | None, series: str, role: str, titles: Mapping[str, str]) -> list[Row]:
    """One row per task of an evaluation, in the suite's order."""
    tasks = (evaluation or {}).get("tasks", {})
    order = [name for name in titles if name in tasks] + [name for name in tasks if name not in titles]
    return [
        {
            "series": series,
            "role": role,
            "task": name,
            "title": titles.get(name, name),
            "seen": tasks[name]["seen"],
            "n": tasks[name]["n"],
            "accuracy": tasks[name]["accuracy"],
            "low": (tasks[name].get("interval") or (None, None))[0],
            "high": (tasks[name].get("interval") or (None, None))[1],
            "normalised": tasks[name].get("normalised"),
        }
        for name in order
    ]


def result_rows(result: Result, kept: Sequence[Result] = ()) -> list[Row]:
    """Rows of the base, the experts, the merge and the kept results."""
    titles = result["titles"]
    rows = rows_of(result.get("base"), "base", "base", titles)
    rows += rows_of(result.get("experts"), "experts", "experts", titles)
    rows += rows_of(result.get("evaluation"), "merged", "merged", titles)
    for other in kept:
        rows += rows_of(other["evaluation"], other["label"], "kept", titles | other["titles"])
    return rows


def with_normalised(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["seen"] and row["normalised"] is not None]


# ---- figures --------------------------------------------------------------------------------------------------------


def plot(figure: Any, name: str) -> PlotData:
    """A figure for ``gr.Plot``, whose camera button saves a PNG called ``name`` (in the browser, without a server)."""
    config = {
        "displaylogo": False,
        "displayModeBar": True,
        "modeBarButtons": [["toImage"]],
        "toImageButtonOptions": {"format": "png", "filename": f"mergelab-{name}", "scale": 2},
    }
    return PlotData(type="plotly", plot=json.dumps({**json.loads(figure.to_json()), "config": config}))


def radar(result: Result | None, kept: Sequence[Result] = (), *, height: int = 400) -> PlotData | None:
    if result is None:
        return None
    rows = result_rows(result, kept)
    compared = with_normalised(rows)
    figure = figures.radar(compared, height=height) if compared else figures.accuracy_bars(rows, height=height)
    return plot(figure, "radar")


def bars(result: Result | None, kept: Sequence[Result] = ()) -> PlotData | None:
    if result is None:
        return None
    return plot(figures.accuracy_bars(result_rows(result, kept)), "accuracies")


def sentence(result: Result | None) -> str:
    if result is None:
        return ""
    if result.get("evaluation") is None:
        return "These models have no suite, so nothing is measured; the merge itself can be downloaded below."
    return figures.describe_result(result_rows(result), series="merged")


# ---- tables ---------------------------------------------------------------------------------------------------------


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def decimals(value: float | None, digits: int = 3) -> str:
    """A number with so many decimals; what rounds to nothing has no sign."""
    return "–" if value is None else f"{round(value, digits) + 0.0:.{digits}f}"


def main_table(result: Result | None) -> str:
    """The table beside the radar: per task the base, the expert, the merge with its interval, and the ratio."""
    if result is None or result.get("evaluation") is None:
        return ""
    by = {(row["role"], row["task"]): row for row in result_rows(result)}
    merged = rows_of(result["evaluation"], "merged", "merged", result["titles"])
    body = []
    for row in merged:
        base, expert = by.get(("base", row["task"])), by.get(("experts", row["task"]))
        body.append(
            [
                html.escape(row["title"]) + ("" if row["seen"] else ' <span class="ml-tag">unseen</span>'),
                percent(base["accuracy"] if base else None),
                percent(expert["accuracy"] if expert else None),
                f"<b>{percent(row['accuracy'])}</b> <small>{interval(row)}</small>",
                meter(row["normalised"]),
            ]
        )
    for title, key in (("Mean, seen", "seen"), ("Mean, unseen", "unseen")):
        mean = result["evaluation"].get(key) or {}
        if mean.get("accuracy") is None:
            continue
        base = ((result.get("base") or {}).get(key) or {}).get("accuracy")
        expert = ((result.get("experts") or {}).get(key) or {}).get("accuracy")
        cells = [
            title,
            percent(base),
            percent(expert),
            f"<b>{percent(mean['accuracy'])}</b>",
            meter(mean["normalised"]),
        ]
        body.append(cells)
    head = ["Task", "Base", "Expert", "Merged", "/ Expert"]
    caption = f"Accuracy in % {scope(result)}, with 95 % intervals"
    return table(head, body, caption, summary_from=len(merged)) + downloads(result_rows(result), "results")


def interval(row: Row) -> str:
    return "" if row["low"] is None else f"{100 * row['low']:.0f}–{100 * row['high']:.0f}"


def meter(value: float | None) -> str:
    """A ratio as a number with a bar that is full at 1."""
    if value is None:
        return '<span class="ml-none">–</span>'
    width = max(0.0, min(1.0, value)) * 100
    return f'<span class="ml-meter"><i style="width:{width:.0f}%"></i></span><span class="ml-num">{value:.2f}</span>'


def scope(result: Result) -> str:
    """On which items a result was measured, in words."""
    n = result.get("per_task")
    return "on the whole test sets" if n is None else f"on {n} test images a task"


def place(label: str, elem_id: str) -> gr.Plot:
    """A place for a figure; its heading stands above it."""
    return gr.Plot(label=label, elem_id=elem_id, show_label=False, container=False)


def heading(text: str) -> str:
    """A small heading above a figure."""
    return f'<h2 class="ml-heading">{html.escape(text)}</h2>'


def table(
    head: Sequence[str],
    body: Sequence[Sequence[str]],
    caption: str,
    summary_from: int | None = None,
    *,
    words: bool = False,
) -> str:
    """An HTML table; the cells are HTML already, the first of a row is its header. ``words``: cells are not numbers."""
    lines = [f'<div class="ml-scroll" tabindex="0" role="region" aria-label="{html.escape(caption)}">']
    lines.append(
        f'<table class="ml-table{" ml-words" if words else ""}"><caption>{html.escape(caption)}</caption><thead><tr>'
    )
    lines += [f'<th scope="col">{cell}</th>' for cell in head]
    lines.append("</tr></thead><tbody>")
    for place, cells in enumerate(body):
        mark = ' class="ml-sum"' if summary_from is not None and place >= summary_from else ""
        lines.append(
            f'<tr{mark}><th scope="row">{cells[0]}</th>' + "".join(f"<td>{c}</td>" for c in cells[1:]) + "</tr>"
        )
    return "".join([*lines, "</tbody></table></div>"])


MODEL_HEAD = [
    "Model", "Seen, accuracy %", "Seen, normalised", "Unseen, accuracy %", "Items a task", "Coefficients", "Data used",
    "Seconds",
]  # fmt: skip
TASK_HEAD = ["Model", "Task", "Seen", "Accuracy %", "Low %", "High %", "Normalised", "Items"]


def model_table(result: Result, kept: Sequence[Result] = ()) -> list[list[Any]]:
    """One line per model: averages, what was used, what it cost."""
    lines = []
    for label, evaluation, source in [
        ("base", result.get("base"), None),
        ("experts", result.get("experts"), None),
        ("merged", result["evaluation"], result),
        *((other["label"], other["evaluation"], other) for other in kept),
    ]:
        if evaluation is None:
            continue
        about = source or result
        lines.append(
            [
                label if label != "merged" else f"merged: {result['label']}",
                _share(evaluation["seen"]["accuracy"]),
                _rounded(evaluation["seen"]["normalised"]),
                _share((evaluation.get("unseen") or {}).get("accuracy")),
                "all" if about.get("per_task") is None else str(about["per_task"]),
                ("tuned on validation" if source["tuned"] else "untuned") if source else "–",
                evaluation.get("data_used") or "none",
                round(source["seconds"], 2) if source and source.get("seconds") is not None else None,
            ]
        )
    return lines


def task_table(result: Result, kept: Sequence[Result] = ()) -> list[list[Any]]:
    """One line per model and task."""
    return [
        [row["series"], row["title"], "yes" if row["seen"] else "no", _share(row["accuracy"]), _share(row["low"]),
         _share(row["high"]), _rounded(row["normalised"]), row["n"]]
        for row in result_rows(result, kept)
    ]  # fmt: skip


def _share(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 1)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


# ---- files made in the page -----------------------------------------------------------------------------------------


def to_csv(head: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    """CSV text; cells that a spreadsheet would run as a formula are quoted with an apostrophe."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    for line in lines:
        writer.writerow(
            ["'" + cell if isinstance(cell, str) and cell[:1] in "=+-@\t" and cell[:1] else cell for cell in line]
        )
    return out.getvalue()


def link(label: str, content: str, filename: str, kind: str = "text/csv") -> str:
    """A download that needs no server: the file is in the link."""
    data = base64.b64encode(content.encode()).decode()
    name = html.escape(filename, quote=True)
    return f'<a class="ml-link" download="{name}" href="data:{kind};base64,{data}">{html.escape(label)}</a>'


def downloads(rows: Sequence[Row], name: str) -> str:
    """The link to the numbers of a figure."""
    head = ["series", "task", "title", "seen", "n", "accuracy", "low", "high", "normalised"]
    text = to_csv(head, [[row[key] for key in head] for row in rows])
    return f'<p class="ml-files">{link("Numbers as CSV", text, f"mergelab-{name}.csv")}</p>'


# ---- predictions ----------------------------------------------------------------------------------------------------

ROLES = {"base": "base", "expert": "experts", "merged": "merged"}


def prediction_rows(predictions: Sequence[Any]) -> list[Row]:
    """Rows of class probabilities from a bench's predictions (objects) or shipped ones (dicts)."""
    rows = []
    for item in predictions:
        found: Mapping[str, Any] = item if isinstance(item, Mapping) else vars(item)
        series = found["model"]
        for label, value in zip(found["classes"], found["probabilities"], strict=True):
            rows.append({"series": series, "role": ROLES[series], "class": str(label), "probability": float(value)})
    return rows


def prediction_plot(prediction: Mapping[str, Any] | None, *, height: int = 300) -> PlotData | None:
    if not prediction:
        return None
    top = 5 if height > 260 else 3
    return plot(figures.probability_bars(prediction["rows"], top=top, height=height), "prediction")


def prediction_sentence(prediction: Mapping[str, Any] | None) -> str:
    return figures.describe_prediction(prediction["rows"], prediction.get("truth")) if prediction else ""


def prediction_table(prediction: Mapping[str, Any] | None, top: int = 5) -> str:
    """The five likeliest classes of each model, side by side."""
    if not prediction:
        return ""
    ranked: dict[str, list[Row]] = {}
    for row in sorted(prediction["rows"], key=lambda r: -r["probability"]):
        ranked.setdefault(row["series"], []).append(row)
    names = [name for name in ROLES if name in ranked]
    count = min(top, max(len(rows) for rows in ranked.values()))
    body = []
    for place in range(count):
        cells = [str(place + 1)]
        for name in names:
            row = ranked[name][place]
            right = " ✓" if row["class"] == prediction.get("truth") else ""
            cells.append(f"{html.escape(row['class'])}{right} <small>{row['probability']:.1%}</small>")
        body.append(cells)
    head = ["Place", *(name.capitalize() for name in names)]
    lines = [[row["series"], row["class"], row["probability"]] for row in prediction["rows"]]
    file = link("All probabilities as CSV", to_csv(["model", "class", "probability"], lines), "mergelab-prediction.csv")
    return table(head, body, f"Likeliest classes, head of {prediction['title']}") + f'<p class="ml-files">{file}</p>'


def png(picture: np.ndarray) -> str:
    """A uint8 picture ``[H, W, 3]`` as a data address."""
    out = io.BytesIO()
    Image.fromarray(np.asarray(picture, dtype=np.uint8)).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def picture_card(prediction: Mapping[str, Any] | None) -> str:
    """The picture as the models see it, large enough to look at."""
    if not prediction:
        return ""
    truth = prediction.get("truth")
    text = f"{prediction['title']}: “{truth}”" if truth else f"Your picture, read as {prediction['title']}"
    return (
        f'<figure class="ml-picture"><img src="{prediction["png"]}" alt="{html.escape(text, quote=True)}">'
        f"<figcaption>{html.escape(text)}</figcaption></figure>"
    )


# ---- small pieces ---------------------------------------------------------------------------------------------------


def status(text: str, kind: str = "ok", done: int = 0, total: int = 0) -> str:
    """The status line: ``ok``, ``busy`` (with a bar where the total is known) or ``error``."""
    bar = ""
    if kind == "busy":
        bar = f'<progress max="{total}" value="{done}"></progress> ' if total else "<progress></progress> "
    role = "alert" if kind == "error" else "status"
    return f'<div class="ml-status ml-{kind}" role="{role}">{bar}{html.escape(text)}</div>'


def result_status(result: Result | None, extra: str = "") -> str:
    """What is shown, how it was measured, and whether its coefficients were tuned."""
    if result is None:
        return status(extra or "Ready.")
    if result.get("evaluation") is None:
        return status(f"{result['label']}: merged in memory in {result['seconds']:.1f} s. {extra}".strip())
    mean = result["evaluation"]["seen"]
    mark = "tuned on validation" if result["tuned"] else "untuned"
    took = f" in {result['seconds']:.1f} s" if result.get("seconds") is not None else ""
    text = f"{result['label']}: {percent(mean['accuracy'])} % on average {scope(result)}{took}; {mark}."
    return status(f"{text} {extra}".strip())


def note(text: str, kind: str = "info") -> str:
    return f'<p class="ml-note ml-{kind}">{html.escape(text)}</p>'


def skip(count: int) -> list[Any]:
    """``count`` outputs that stay as they are."""
    return [gr.skip() for _ in range(count)]
