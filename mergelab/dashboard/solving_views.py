"""What the tabs "Path" and "Blocks" show: figures, sentences, tables. Pure functions of a path's plain values."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from .. import figures
from . import views
from .data_views import time_text as seconds_text

LEAD = (
    '<p class="ml-lead">One solve keeps the weights after every few iterations. What the solver minimises, J, can only '
    "fall; accuracy on validation images need not follow. Move the slider to be at any of them.</p>"
)
_MOST_NAMES = 4


def path_cost(seconds: float, most: int) -> str:
    text = f"One pass of {most} iterations: about {seconds_text(seconds)} of solving, then measuring every snapshot."
    return f'<p class="ml-cost">{html.escape(text)}</p>'


def path_view(path: Mapping[str, Any], place: int) -> list[Any]:
    """Figure with the shown and the chosen snapshot marked, sentence, table."""
    points, best = path["points"], path["best"]
    steps = [point["k"] for point in points]
    objective, accuracy = ([point[key] for point in points] for key in ("objective", "accuracy"))
    figure = figures.solve_curve(steps, objective, accuracy, shown=place, best=best)
    text = figures.describe_path(steps, objective, accuracy, place, best)
    first = next((value for value in objective if value), None)
    titles = path.get("titles", {})
    tasks = list(next((point["tasks"] for point in points if point["tasks"]), {}))
    body = []
    for i, point in enumerate(points):
        mark = " ★" if i == best else ""
        name = f"<b>{point['k']}{mark}</b>" if i == place else f"{point['k']}{mark}"
        share = f"{point['objective'] / first:.2%}" if first and point["objective"] is not None else "–"
        body.append(
            [name, share, _number(point["residual"]), f"<b>{views.percent(point['accuracy'])}</b>",
             _lowest(point["tasks"], titles)]
        )  # fmt: skip
    head = ["Iterations", "J", "Residual", "Mean", "Lowest task"]
    many = "all" if path["limit"] is None else f"{path['limit']}"
    caption = (
        f"Accuracy in % on {many} {path['split']} images a task; ★ chosen on validation; J as a share of its start"
    )
    lines = [
        [p["k"], p["objective"], p["residual"], p["accuracy"], int(i == best), *(p["tasks"].get(t) for t in tasks)]
        for i, p in enumerate(points)
    ]
    columns = ["iterations", "objective", "residual", "accuracy", "chosen on validation", *tasks]
    file = views.link("Path as CSV", views.to_csv(columns, lines), "mergelab-path.csv")
    return [views.plot(figure, "path"), text, views.table(head, body, caption) + f'<p class="ml-files">{file}</p>']


def blocks_view(found: Mapping[str, Any], place: int) -> list[Any]:
    """Heat map of changes by layer and part, sentence, table by layer, list of blocks that were left and why."""
    layers: Mapping[str, str] = found["layers"]
    solved = [b for b in found["blocks"] if not b["left"] and b["by"] != "experts"]
    names = parts_of([block["tensor"] for block in solved], layers)
    cells: dict[str, dict[str, float]] = {}
    for block in solved:
        cells.setdefault(names[block["tensor"]], {})[layers[block["tensor"]]] = _change(block, place)
    columns = [layer for layer in dict.fromkeys(layers.values()) if any(layer in row for row in cells.values())]
    matrix = [[row.get(layer) for layer in columns] for row in cells.values()]
    top = max((max(block["change"]) for block in solved), default=0.0)
    tall = max(300, 130 + 26 * len(cells))
    figure = figures.coefficient_heatmap(columns, list(cells), matrix, top=max(top, 1e-9), height=tall)
    by_layer = {layer: [row[layer] for row in cells.values() if layer in row] for layer in columns}
    means = {layer: sum(values) / len(values) for layer, values in by_layer.items()}
    body = [
        [html.escape(layer), str(len(values)), f"{means[layer]:.3f}", f"{max(values):.3f}"]
        for layer, values in by_layer.items()
    ]
    lines = [
        [b["tensor"], layers[b["tensor"]], b["by"], b["why"], b["stopped"], _change(b, place)] for b in found["blocks"]
    ]
    columns_csv = ["tensor", "layer", "by", "why", "stopped", "change"]
    file = views.link("Every block as CSV", views.to_csv(columns_csv, lines), "mergelab-blocks.csv")
    table = views.table(["Layer", "Solved", "Mean change", "Largest"], body, "Change of solved blocks, in task vectors")
    text = figures.describe_change(means)
    return [views.plot(figure, "blocks"), text, table + f'<p class="ml-files">{file}</p>', left_table(found["blocks"])]


def left_table(blocks: Any) -> str:
    """The blocks that the method did not solve: how they were merged, why, how many."""
    groups: dict[tuple[str, str], list[str]] = {}
    for block in blocks:
        if block["left"]:
            groups.setdefault((block["by"], block["why"]), []).append(block["tensor"])
        elif block["by"] == "experts":
            groups.setdefault(("kept", "all experts have the same"), []).append(block["tensor"])
        elif block["stopped"] == "no information":
            groups.setdefault((block["by"], "no task's statistics see it"), []).append(block["tensor"])
    if not groups:
        return views.note("Every block was solved.")
    names = {"average": "averaged", "init": "left at the start", "fisher": "by the diagonal Fisher"}
    body = []
    for (by, why), tensors in groups.items():
        some = ", ".join(tensors[:_MOST_NAMES]) + (" …" if len(tensors) > _MOST_NAMES else "")
        body.append([html.escape(names.get(by, by)), html.escape(why), str(len(tensors)), html.escape(some)])
    head = ["How", "Why", "Blocks", "Such as"]
    return views.table(head, body, "Blocks that were not solved, and why", words=True)


def parts_of(tensors: Sequence[str], layers: Mapping[str, str]) -> dict[str, str]:
    """What each tensor is within its layer: ``k_proj``, or ``attention.dense`` where a layer has two of a name."""
    words = {tensor: [part for part in tensor.split(".") if part != "weight"] for tensor in tensors}
    found = {tensor: ".".join(parts[-1:]) for tensor, parts in words.items()}
    seen: set[tuple[str, str]] = set()
    for tensor in tensors:
        key = (layers[tensor], found[tensor])
        if key in seen:
            return {each: ".".join(parts[-2:]) for each, parts in words.items()}
        seen.add(key)
    return found


def _lowest(tasks: Mapping[str, float], titles: Mapping[str, str]) -> str:
    if not tasks:
        return "–"
    name = min(tasks, key=tasks.__getitem__)
    return f"{views.percent(tasks[name])} <small>{html.escape(titles.get(name, name))}</small>"


def _change(block: Mapping[str, Any], place: int) -> float:
    return float(block["change"][min(place, len(block["change"]) - 1)])


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2e}"
