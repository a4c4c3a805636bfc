"""Views of single pictures under a routed model: weights beside class probabilities, and a mixed batch."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from .. import figures
from . import views
from .router_views import HEADS, head_badge

#: Series of the figures; the routed model has the colour that a merged model has everywhere.
_ROLES = {"shared": "kept", "routed": "merged", "by hand": "kept"}


def weight_plot(found: Mapping[str, Any] | None, titles: Mapping[str, str]) -> Any:
    """The router's weights, and those set by hand where there are any."""
    if not found:
        return None
    rows = [
        {
            "series": "router" if who == "routed" else who,
            "role": _ROLES[who],
            "task": titles.get(task, task),
            "weight": weight,
        }
        for who in ("routed", "by hand")
        if who in found["weights"]
        for task, weight in zip(found["names"], found["weights"][who], strict=True)
    ]
    height = 110 + (26 if "by hand" not in found["weights"] else 38) * len(found["names"])
    return views.plot(figures.weight_bars(rows, height=height), "weights")


def class_rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"series": who, "role": _ROLES[who], **row} for who, rows in found["models"].items() for row in rows]


def class_plot(found: Mapping[str, Any] | None) -> Any:
    return (
        views.plot(figures.probability_bars(class_rows(found), top=5, height=330), "routed-prediction")
        if found
        else None
    )


def sentence(found: Mapping[str, Any] | None, titles: Mapping[str, str]) -> str:
    """Where the router sends the picture, who reads it, and what is said."""
    if not found:
        return ""
    weights = dict(zip(found["names"], found["weights"]["routed"], strict=True))
    first = max(weights, key=weights.__getitem__)
    if max(weights.values()) == 0:
        text = "The router is not sure enough, so the shared model answers alone. "
    else:
        text = f"The router gives {weights[first]:.0%} to the expert of {titles.get(first, first)}"
        text += ", the rest to others. " if weights[first] < 0.995 else ". "
    reader = titles.get(found["task"], found["task"])
    text += {"max_logit": f"The highest logit is from the head of {reader}. ",
             "oracle": f"The head of {reader} reads it: it was told. ",
             "router_argmax": f"The head of {reader} reads it. "}[found["head"]]  # fmt: skip
    return text + figures.describe_prediction(class_rows(found), found.get("truth"))


def weight_table(found: Mapping[str, Any] | None, titles: Mapping[str, str]) -> str:
    """Weights of every expert and the likeliest classes, as numbers."""
    if not found:
        return ""
    who = [name for name in ("routed", "by hand") if name in found["weights"]]
    body = [
        [html.escape(titles.get(task, task)), *(f"{found['weights'][name][i]:.3f}" for name in who)]
        for i, task in enumerate(found["names"])
    ]
    body.append(["Sum", *(f"{sum(found['weights'][name]):.3f}" for name in who)])
    weights = views.table(
        ["Expert", *("Router" if n == "routed" else "By hand" for n in who)], body, "Weights of the parts",
        summary_from=len(body) - 1,
    )  # fmt: skip
    ranked = {n: sorted(rows, key=lambda row: -row["probability"])[:5] for n, rows in found["models"].items()}
    places = []
    for place in range(max(map(len, ranked.values()))):
        cells = [str(place + 1)]
        for rows in ranked.values():
            row = rows[place] if place < len(rows) else None
            mark = " ✓" if row and row["class"] == found.get("truth") else ""
            cells.append(f"{html.escape(row['class'])}{mark} <small>{row['probability']:.1%}</small>" if row else "")
        places.append(cells)
    classes = views.table(
        ["Place", *(n.capitalize() for n in ranked)], places, f"Likeliest classes, {HEADS[found['head']][0].lower()}"
    )
    return weights + classes + f"<p>{head_badge(found['head'])}</p>"


def card(found: Mapping[str, Any] | None, titles: Mapping[str, str]) -> str:
    if not found:
        return ""
    task = titles.get(found.get("from") or "", "")
    text = f"{task}: “{found['truth']}”" if found.get("truth") else "Your picture"
    return (
        f'<figure class="ml-picture"><img src="{found["png"]}" alt="{html.escape(text, quote=True)}">'
        f"<figcaption>{html.escape(text)}</figcaption></figure>"
    )


def batch_view(found: Mapping[str, Any] | None, titles: Mapping[str, str]) -> list[Any]:
    """Cards of the pictures by group, sentence, table."""
    if not found:
        return ["", "", ""]
    names, items = found["names"], found["items"]
    blocks = []
    for group, weights in enumerate(found["groups"]):
        mine = [item for item in items if item["group"] == group]
        if not mine:
            continue
        top = sorted(range(len(names)), key=lambda i: -weights[i])[:2]
        said = ", ".join(f"{titles.get(names[i], names[i])} {weights[i]:.2f}" for i in top if weights[i] >= 0.005)
        cards = "".join(_thumb(item, titles) for item in mine)
        count = f"{len(mine)} picture{'s' if len(mine) > 1 else ''}"
        blocks.append(
            f'<section class="ml-group"><h3>Group {group + 1}: {count} '
            f"<small>{html.escape(said or 'shared model alone')}</small></h3>"
            f'<div class="ml-thumbs">{cards}</div></section>'
        )
    body = [
        [
            str(place + 1), html.escape(titles.get(item["task"], item["task"])),
            html.escape(titles.get(item["chosen"], item["chosen"])) + ("" if item["chosen"] == item["task"] else " ✗"),
            f"{max(item['weights']):.2f}", str(item["group"] + 1), html.escape(item["label"]),
            html.escape(item["predicted"]) + (" ✓" if item["right"] else " ✗"),
        ]
        for place, item in enumerate(items)
    ]  # fmt: skip
    head = ["Place", "Task", "First choice", "Its weight", "Group", "Truth", "Prediction"]
    table = views.table(head, body, f"The batch in its own order; {HEADS[found['head']][0].lower()}", words=True)
    lines = [
        [
            i + 1,
            item["task"],
            item["chosen"],
            item["group"] + 1,
            item["label"],
            item["predicted"],
            item["right"],
            *item["weights"],
        ]
        for i, item in enumerate(items)
    ]
    head = ["place", "task", "chosen", "group", "label", "predicted", "right", *(f"weight of {n}" for n in names)]
    file = views.link("Batch as CSV", views.to_csv(head, lines), "mergelab-batch.csv")
    return ["".join(blocks), figures.describe_batch(items), table + f'<p class="ml-files">{file}</p>']


def _thumb(item: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    task = titles.get(item["task"], item["task"])
    text = f"{task}, “{item['label']}”, read as “{item['predicted']}”, {'right' if item['right'] else 'wrong'}"
    weight = max(item["weights"])
    return (
        f'<figure class="ml-thumb{"" if item["right"] else " ml-wrong"}" title="{html.escape(text, quote=True)}">'
        f'<img src="{item["png"]}" alt="{html.escape(text, quote=True)}"><figcaption>{html.escape(item["predicted"])} '
        f"{'✓' if item['right'] else '✗'}<br>{weight:.2f}</figcaption></figure>"
    )
