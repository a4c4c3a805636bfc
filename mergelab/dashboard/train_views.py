"""From a document of training runs (plain dicts) to the Train tab's figures, tables and sentences. Pure functions.

A *document* is what :mod:`mergelab.runs.training.compare` writes: ``runs`` by kind, the first being what it is about;
``merges``, the one-shot merges beside it; ``table``, once all of it has ended.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from .. import figures
from . import views

Document = Mapping[str, Any]
#: What the runs of a document are called.
NAMES = {"atm": "ATM", "joint": "joint training", "pcgrad": "joint with PCGrad", "experts": "tuned experts",
         "one_shot": "experts, as long"}  # fmt: skip
#: The same at the head of a column.
SHORT = {"joint training": "Joint", "tuned experts": "Tuned", "joint with PCGrad": "PCGrad"}
#: Where levels stand among the columns of a round's table: after the runs.
_ORDER = {"experts": 2, "base": 3}
#: Lines of single tasks are drawn for the other runs too while no more than these are chosen.
_FEW = 2


def main(document: Document) -> dict[str, Any]:
    """The record that the document is about."""
    return next(iter(document["runs"].values()))


def slider_label(document: Document, place: int) -> str:
    record = main(document)
    return f"Round {place} of {record['recipe']['budget']['rounds']}" if place else "Before the first round"


def last_round(document: Document | None) -> int:
    return len(main(document)["rounds"]) if document and document["runs"] else 0


def epochs_at(document: Document, place: int) -> float:
    """Epochs a task after a round."""
    points = main(document)["points"]
    return float(points[max(0, min(place, len(points) - 1))]["epochs"]) if points else 0.0


def until(record: Mapping[str, Any]) -> float:
    """Epochs a task when all rounds will be done."""
    points, rounds = record["points"], record["recipe"]["budget"]["rounds"]
    if len(points) > 1:
        return float(points[-1]["epochs"]) / points[-1]["round"] * rounds
    budget = record["recipe"]["budget"]
    return float(rounds * budget["epochs"]) if not budget.get("steps") else 0.0


def mean(scores: Mapping[str, float]) -> float:
    return math.fsum(scores.values()) / len(scores)


def point_at(record: Mapping[str, Any], epochs: float) -> dict[str, Any] | None:
    """A run's point after as many epochs a task; None where it has not come there."""
    found = [point for point in record["points"] if abs(point["epochs"] - epochs) < 1e-6 and point["accuracy"]]
    return found[-1] if found else None


def ratio(scores: Mapping[str, float], experts: Mapping[str, float]) -> float | None:
    """Mean over tasks of accuracy / expert's accuracy."""
    ratios = [scores[task] / experts[task] for task in scores if experts.get(task)]
    return math.fsum(ratios) / len(ratios) if ratios else None


# ---- curves ----------------------------------------------------------------------------------------------------------


def curve_rows(document: Document, tasks: Sequence[str]) -> list[dict[str, Any]]:
    """Rows for :func:`mergelab.figures.training_curves`: means of all runs, and lines of ``tasks``."""
    rows = []
    for at, (kind, record) in enumerate(document["runs"].items()):
        titles = record["titles"]
        look = {"series": NAMES.get(kind, kind), "role": "merged" if not at else "kept"}
        for point in record["points"]:
            scores = point["accuracy"]
            if not scores or (kind in ("experts", "one_shot") and len(scores) < len(record["tasks"])):
                continue
            rows.append({**look, "task": None, "epochs": point["epochs"], "accuracy": mean(scores)})
            if not at or len(tasks) <= _FEW:
                rows += [{**look, "task": titles.get(task, task), "epochs": point["epochs"], "accuracy": scores[task]}
                         for task in tasks if task in scores]  # fmt: skip
    return rows


def level_rows(document: Document) -> list[dict[str, Any]]:
    """The mean levels of the base and of the experts."""
    found = main(document)["references"]
    return [{"series": who, "role": who, "accuracy": mean(found[who])} for who in ("experts", "base") if found.get(who)]


def merge_rows(document: Document, titles: Mapping[str, str]) -> list[dict[str, Any]]:
    """One-shot merges as points: each method with its coefficient chosen on held items, and the plain mean. The untuned
    ones are in the table. ``titles``: of methods."""
    return [
        {"series": merge_name(row, titles), "epochs": row["epochs"], "open": not row["tuned"],
         "accuracy": mean(row["accuracy"])}
        for row in document["merges"] if row["tuned"] or row["method"] == "mean"
    ]  # fmt: skip


def merge_name(row: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    if row["method"] == "alpha":
        return "only the start’s α"
    return "1× mean" if row["method"] == "mean" else f"1× {titles.get(row['method'], row['method'])}"


def curves(document: Document | None, place: int, tasks: Sequence[str], titles: Mapping[str, str]) -> list[Any]:
    """Figure, sentence."""
    if not document or not document["runs"]:
        return [None, ""]
    rows, epochs = curve_rows(document, tasks), epochs_at(document, place)
    levels, points = level_rows(document), merge_rows(document, titles)
    figure = figures.training_curves(
        rows, levels=levels, points=points, until=until(main(document)),
        shown=epochs if len(main(document)["points"]) > 1 else None,
    )  # fmt: skip
    experts = next((row["accuracy"] for row in levels if row["role"] == "experts"), None)
    text = figures.describe_training(rows, shown=epochs, experts=experts, points=points)
    return [views.plot(figure, "training"), " ".join([text, *map(str, main(document)["findings"])])]


# ---- a round ---------------------------------------------------------------------------------------------------------


def round_rows(document: Document, place: int) -> list[dict[str, Any]]:
    """Rows for radar and bars: every run at the round's epochs, the base and the experts."""
    record, epochs = main(document), epochs_at(document, place)
    known, titles = record["references"], record["titles"]
    experts = known.get("experts", {})
    sources = [("base", "base", known.get("base")), ("experts", "experts", experts or None)]
    for at, (kind, other) in enumerate(document["runs"].items()):
        point = point_at(other, epochs)
        if point is not None and kind != "one_shot":
            sources.append((NAMES.get(kind, kind), "kept" if at else "merged", point["accuracy"]))
    return [
        {"series": name, "role": role, "task": task, "title": titles.get(task, task), "accuracy": scores[task],
         "low": None, "high": None, "normalised": scores[task] / experts[task] if experts.get(task) else None}
        for name, role, scores in sources if scores for task in record["tasks"] if task in scores
    ]  # fmt: skip


def round_view(document: Document | None, place: int) -> list[Any]:
    """Radar and table of one round."""
    if not document or not document["runs"]:
        return [None, ""]
    rows, record = round_rows(document, place), main(document)
    mine = next((row["series"] for row in rows if row["role"] == "merged"), None)
    names = sorted(dict.fromkeys(row["series"] for row in rows), key=lambda name: _ORDER.get(name, name != mine))
    experts = record["references"].get("experts", {})
    scores = {name: {r["task"]: r["accuracy"] for r in rows if r["series"] == name} for name in names}
    body = []
    for task in record["tasks"]:
        cells = [views.percent(scores[name].get(task)) for name in names]
        own = scores[mine].get(task) if mine else None
        share = own / experts[task] if own is not None and experts.get(task) else None
        body.append([html.escape(record["titles"].get(task, task)), *_cells(cells, share, mine)])
    means = [views.percent(mean(scores[name])) for name in names]
    body.append(["Mean", *_cells(means, ratio(scores[mine], experts) if mine else None, mine)])
    heads = [html.escape(name[:1].upper() + name[1:]) for name in (SHORT.get(name, name) for name in names)]
    head = ["Task", *_cells(heads, "/\N{NO-BREAK SPACE}Expert", mine, bold=False)]
    table = views.table(head, body, _caption(record, place), summary_from=len(record["tasks"]))
    radar = figures.radar(rows, height=380) if experts else figures.accuracy_bars(rows, height=380)
    return [views.plot(radar, "training-round"), table]


def _cells(cells: Sequence[str], share: float | str | None, mine: str | None, *, bold: bool = True) -> list[str]:
    """The cells of a row, the run's own first and with its share of the expert behind it."""
    if mine is None:
        return list(cells)
    text = share if isinstance(share, str) else _share(share)
    return [f"<b>{cells[0]}</b>" if bold else cells[0], text, *cells[1:]]


def _caption(record: Mapping[str, Any], place: int) -> str:
    number = max(0, min(place, len(record["rounds"])))
    at = f"after round {number}" if number else "before the first round"
    seen = record["watch"]
    items = sorted(set(seen.get("items", {}).values()))
    many = f"{items[0]}" if len(items) == 1 else f"{items[0]} to {items[-1]}" if items else "the"
    return f"Accuracy in % {at}, on {many} {split_words(seen.get('split'))} pictures a task"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def split_words(name: str | None) -> str:
    return {"held": "held-out validation", "val": "validation", "test": "test"}.get(name or "", "")


def merges_view(document: Document | None, place: int, titles: Mapping[str, str]) -> str:
    """Table of the one-shot merges after as many epochs."""
    if not document or not document["runs"]:
        return ""
    epochs, record = epochs_at(document, place), main(document)
    rows = [row for row in document["merges"] if abs(row["epochs"] - epochs) < 1e-6 or row["method"] == "alpha"]
    if not rows:
        return ""
    experts = record["references"].get("experts", {})
    body = [
        [html.escape(merge_name(row, titles)), _alpha(row), views.percent(mean(row["accuracy"])),
         _share(ratio(row["accuracy"], experts))]
        for row in rows
    ]  # fmt: skip
    caption = f"Experts after {epochs:g} epochs, merged once: mean accuracy in %"
    return views.table(["Merged once", "α", "Mean", "/ Expert"], body, caption)


def _alpha(row: Mapping[str, Any]) -> str:
    value = row.get("parameters", {}).get("alpha")
    if value is None:
        return "untuned"
    return f"{value:g}, {'chosen' if row['tuned'] else 'untuned'}"


# ---- files -----------------------------------------------------------------------------------------------------------


def files(document: Document | None) -> str:
    """The points as CSV, the recipe as YAML."""
    if not document or not document["runs"]:
        return ""
    lines: list[list[Any]] = []
    for kind, record in document["runs"].items():
        for point in record["points"]:
            lines += [[NAMES.get(kind, kind), point["round"], point["epochs"], point["samples"], task, value,
                       point["loss"].get(task)] for task, value in point["accuracy"].items()]  # fmt: skip
    for row in document["merges"]:
        name = merge_name(row, {}) + (", chosen" if row["tuned"] else ", untuned")
        lines += [[name, None, row["epochs"], None, task, value, (row.get("loss") or {}).get(task)]
                  for task, value in row["accuracy"].items()]  # fmt: skip
    head = ["run", "round", "epochs", "samples", "task", "accuracy", "loss"]
    points = views.link("Points as CSV", views.to_csv(head, lines), "mergelab-training.csv")
    recipe = views.link("recipe.yaml", _yaml(main(document)["recipe"]), "training.yaml", "application/yaml")
    return f'<p class="ml-files">{points}{recipe}<span>Figures: the camera button saves a PNG.</span></p>'


def _yaml(recipe: Mapping[str, Any]) -> str:
    from ..recipe import text

    return text.write(dict(recipe))
