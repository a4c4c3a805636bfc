"""From what a routed model answers (plain dicts) to the Router tab's figures, tables and sentences. Pure functions."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from .. import figures
from . import views

#: What each head policy is called, and the sentence that goes with it.
HEADS = {
    "router_argmax": (
        "Router’s first choice",
        "Nobody tells the task: the head of the router’s first choice reads it.",
    ),
    "max_logit": ("Highest logit", "Nobody tells the task: all heads read the picture, and the highest logit wins."),
    "oracle": ("Oracle: told the task", "Oracle head: told the task of every picture. An upper bound, not a use."),
}
MODES = {
    "auto": "auto: the cheapest that is exact",
    "adapter": "adapter: one pass, a mixture for each row",
    "group": "group: one merge for inputs that are alike",
    "per_input": "per_input: one merge for each input (slow)",
    "static": "static: one merge for all, uniform weights",
    "one_pass": "one_pass: the router reads an early layer",
}
FULL = "all"


def badge(text: str, kind: str = "") -> str:
    return f'<span class="ml-badge{f" ml-{kind}" if kind else ""}">{html.escape(text)}</span>'


def head_badge(head: str) -> str:
    """Says whether the head was told the task; the oracle's badge is loud."""
    if head == "oracle":
        return badge("oracle head: told the task", "loud")
    return badge(f"head: {HEADS[head][0].lower()}, not told the task", "fair")


def badges(built: Mapping[str, Any] | None, found: Mapping[str, Any] | None) -> str:
    """Under the status line: whose head, how it ran, and on which data it was made."""
    if not built or not found:
        return ""
    data = (built["summary"].get("router_data") or {}).values()
    said = f"{sum(data):,} held-out pictures" if data else "held-out pictures"
    marks = [head_badge(found["head"]), badge(f"mode {found['mode']}")]
    if found.get("weights") == "uniform":
        marks.append(badge("uniform weights, no router"))
    else:
        marks.append(badge(f"router data: task labels of {said}, no class labels"))
    if built["summary"].get("shared_data"):
        marks.append(badge(f"shared model: {built['summary']['shared_data']}"))
    return f"<p>{''.join(marks)}</p>"


def built_line(built: Mapping[str, Any]) -> str:
    """What was built, in one line."""
    summary, size = built["summary"], built["summary"]["bytes"]
    when = f"Built in {built['seconds']:.0f} s" if built["seconds"] >= 1 else "Built before"
    text = (
        f"{when}: {len(summary['names'])} experts, {built['size']}, router "
        f"{summary['router'] or 'none'}; {megabytes(size['total'])} in all, of which shared "
        f"{megabytes(size['shared'])}, exclusive parts {megabytes(size['exclusive'])}, router "
        f"{megabytes(size['router'])}, heads {megabytes(size['heads'])}."
    )
    return views.status(text)


def megabytes(count: float) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


# ---- the router -----------------------------------------------------------------------------------------------------


def shares(found: Mapping[str, Any] | None, what: str, titles: Mapping[str, str]) -> list[Any]:
    """Heat map, sentence and table of ``weights`` (mean router weight) or ``confusion`` (first choices)."""
    if not found:
        return [None, "", ""]
    experts, by_task = found["experts"], found["router"][what]
    tasks = [task for task in titles if task in by_task] + [task for task in by_task if task not in titles]
    matrix = [[by_task[task][expert] for expert in experts] for task in tasks]
    rows, said = ([titles.get(name, name) for name in names] for names in (tasks, experts))
    say = figures.describe_weights if what == "weights" else figures.describe_confusion
    text = say(tasks, experts, matrix, rows)
    words = {
        "weights": ("Mean router weight", "router-weights"),
        "confusion": ("Share of first choices", "router-choices"),
    }
    caption, name = words[what]
    body = []
    for task, title, row in zip(tasks, rows, matrix, strict=True):
        cells = [f"<b>{v:.2f}</b>" if e == task else f"{v:.2f}" for e, v in zip(experts, row, strict=True)]
        unseen = "" if task in experts else ' <span class="ml-tag">unseen</span>'
        body.append([html.escape(title) + unseen, *cells])
        if what == "weights":
            body[-1].append(f"{found['router']['entropy'][task]:.2f}")
    head = ["Task", *map(html.escape, said), *(["Entropy"] if what == "weights" else [])]
    lines = [[task, *row] for task, row in zip(tasks, matrix, strict=True)]
    file = views.link("Numbers as CSV", views.to_csv(["task", *experts], lines), f"mergelab-{name}.csv")
    table = views.table(head, body, f"{caption}: tasks by experts") + f'<p class="ml-files">{file}</p>'
    figure = figures.share_heatmap(rows, said, matrix)
    return [views.plot(figure, name), text, table]


def split_line(found: Mapping[str, Any] | None) -> str:
    """Accuracy where the router was right, and where it was not."""
    if not found:
        return ""
    router = found["router"]
    parts = []
    if router.get("accuracy") is not None:
        parts.append(
            f"The router’s largest weight is on the right expert for {router['accuracy']:.1%} of the pictures."
        )
    for key, words in (("when_right", "Where it is, the answer is right for"), ("when_wrong", "where it is not, for")):
        if router.get(key) is not None:
            parts.append(f"{words} {router[key]:.1%}")
    return parts[0] + " " + "; ".join(parts[1:]) + "." if len(parts) > 1 else " ".join(parts)


def result_table(result: views.Result | None) -> str:
    """Per task the static merge, the expert and the routed model. ``result`` carries the static merge as ``static``."""
    if not result:
        return ""
    titles = result["titles"]
    rows = views.rows_of(result["evaluation"], "routed", "merged", titles)
    static, experts = ((result.get(who) or {}).get("tasks", {}) for who in ("static", "experts"))
    body = []
    for row in rows:
        other, expert = static.get(row["task"]), experts.get(row["task"])
        body.append(
            [
                html.escape(row["title"]) + ("" if row["seen"] else ' <span class="ml-tag">unseen</span>'),
                views.percent(other["accuracy"] if other else None),
                views.percent(expert["accuracy"] if expert else None),
                f"<b>{views.percent(row['accuracy'])}</b> <small>{views.interval(row)}</small>",
                views.meter(row["normalised"]),
            ]
        )
    for title, key in (("Mean, seen", "seen"), ("Mean, unseen", "unseen")):
        mean = result["evaluation"].get(key) or {}
        if mean.get("accuracy") is None:
            continue
        others = [((result.get(who) or {}).get(key) or {}).get("accuracy") for who in ("static", "experts")]
        body.append([title, *map(views.percent, others), f"<b>{views.percent(mean['accuracy'])}</b>",
                     views.meter(mean["normalised"])])  # fmt: skip
    head = ["Task", "Static merge, told the task", "Expert, told the task", "Routed", "/ Expert"]
    said = "told the task" if result["evaluation"]["head"] == "oracle" else "not told the task"
    caption = f"Accuracy in % {views.scope(result)}; the routed model is {said}"
    return views.table(head, body, caption, summary_from=len(rows)) + views.downloads(rows, "routed")


def result_sentence(result: views.Result | None) -> str:
    """The routed model against the static merge and the experts."""
    if not result:
        return ""
    mine, static = result["evaluation"]["seen"], (result.get("static") or {}).get("seen") or {}
    text = f"The routed model is right on {mine['accuracy']:.1%} of the pictures"
    if mine["normalised"] is not None:
        text += f", {mine['normalised']:.0%} of what the experts can do"
    if static.get("accuracy") is not None:
        text += f"; its shared model alone, a static merge that is told the task, on {static['accuracy']:.1%}"
    return text + ". " + HEADS[result["evaluation"]["head"]][1]


# ---- rank -----------------------------------------------------------------------------------------------------------


def ranks_of(curve: Mapping[str, Any]) -> list[str]:
    return [FULL if point["rank"] is None else str(point["rank"]) for point in curve["points"]]


def rank_view(
    curve: Mapping[str, Any] | None, place: int, head: str, titles: Mapping[str, str], references: Mapping[str, float]
) -> list[Any]:
    """Figure with the chosen rank marked, sentence, table of all ranks, table of the tasks at the chosen one."""
    if not curve:
        return [None, "", "", ""]
    ranks, points = ranks_of(curve), curve["points"]
    place = max(0, min(int(place), len(points) - 1))
    accuracy = [point["accuracy"][head]["mean"] for point in points]
    sizes = [point["bytes"]["total"] / 1e6 for point in points]
    figure = figures.rank_curve(ranks, accuracy, sizes, place, references=references)
    body = [
        [
            f"<b>{rank}</b>" if i == place else rank, views.percent(accuracy[i]),
            *(f"{point['bytes'][part] / 1e6:.1f}" for part in ("exclusive", "total")), html.escape(point["mode"]),
        ]
        for i, (rank, point) in enumerate(zip(ranks, points, strict=True))
    ]  # fmt: skip
    caption = f"{curve['per_task']} test images a task; {HEADS[head][0].lower()}"
    lines = [[rank, a, p["bytes"]["total"], p["mode"]] for rank, a, p in zip(ranks, accuracy, points, strict=True)]
    file = views.link("Curve as CSV", views.to_csv(["rank", "accuracy", "bytes", "mode"], lines), "mergelab-rank.csv")
    table = views.table(["Rank", "Accuracy %", "Parts, MB", "In all, MB", "Ran as"], body, caption)
    tasks = points[place]["accuracy"][head]["tasks"]
    each = views.table(
        ["Task", f"Rank {ranks[place]}", "Rank 0", "Nothing left out"],
        [
            [html.escape(titles.get(t, t)), f"<b>{views.percent(v)}</b>",
             *(views.percent(points[i]["accuracy"][head]["tasks"][t]) for i in (0, -1))]
            for t, v in tasks.items()
        ],
        "Accuracy in % on every task",
    )  # fmt: skip
    text = figures.describe_rank(ranks, accuracy, sizes, place)
    return [views.plot(figure, "rank"), text, table + f'<p class="ml-files">{file}</p>', each]


# ---- costs ----------------------------------------------------------------------------------------------------------


def storage_view(found: Mapping[str, Any] | None) -> list[Any]:
    """Lines of MB against the number of tasks, sentence, table."""
    if not found:
        return [None, "", ""]
    counts = [str(i + 1) for i in range(len(found["tasks"]))]
    lines = {name: [value / 1e6 for value in values] for name, values in found["lines"].items()}
    own = "routed, as built"
    figure = figures.count_lines(counts, lines, axis="MB", below="tasks", highlight=own)
    order = sorted(lines, key=lambda name: lines[name][-1])
    told = sorted({0, 1, (len(counts) - 1) // 2, len(counts) - 1} & set(range(len(counts))))  # all are in the CSV
    body = [[html.escape(name), *(f"{lines[name][place]:.1f}" for place in told)] for name in order]
    parts = ", ".join(
        f"{name} {megabytes(found['parts'][name])}" for name in ("shared", "exclusive", "router", "heads")
    )
    table = views.table(["MB for … tasks", *(counts[place] for place in told)], body, "Bytes of tensors, in MB")
    file = views.link("Storage as CSV", views.to_csv(["what", *counts], [[n, *found["lines"][n]] for n in order]), "mergelab-storage.csv")  # fmt: skip  # noqa: E501
    text = (
        figures.describe_storage(lines, own)
        + f" As built, rank {found['rank']}: {parts}. Heads are in every line; the router where a model needs one."
    )
    return [views.plot(figure, "storage"), text, table + f'<p class="ml-files">{file}</p>']


def latency_view(found: Mapping[str, Any] | None) -> list[Any]:
    """Milliseconds a picture by batch size and mode, sentence, table."""
    if not found:
        return [None, "", ""]
    sizes, rows = found["sizes"], found["rows"]
    each = {
        mode: [None if value is None else 1000 * value / size for value, size in zip(values, sizes, strict=True)]
        for mode, values in rows.items()
        if any(value is not None for value in values)
    }
    figure = figures.count_lines(
        [str(size) for size in sizes], each, axis="ms a picture", below="pictures at once", logarithmic=True,
        highlight="adapter",
    )  # fmt: skip
    body = []
    for mode, values in rows.items():
        cells = []
        for size, value in zip(sizes, values, strict=True):
            why = found["why"].get(f"{mode}/{size}", "")
            cells.append(
                f'<span title="{html.escape(why, quote=True)}">–</span>'
                if value is None
                else f"{1000 * value / size:.1f}"
            )
        body.append([html.escape(mode), *cells])
    left = [f"{key.replace('/', ', ')} at once: {why}" for key, why in found["why"].items()]
    head = ["ms a picture, at once:", *map(str, sizes)]
    caption = f"Measured here, now: the median of up to {found['repeats']} runs, router included"
    lines = [[mode, *values] for mode, values in rows.items()]
    file = views.link("Seconds a batch as CSV", views.to_csv(["mode", *sizes], lines), "mergelab-latency.csv")
    note = f'<p class="ml-cost">{html.escape("Left out: " + "; ".join(left) + ".")}</p>' if left else ""
    table = views.table(head, body, caption) + f'<p class="ml-files">{file}</p>' + note
    return [views.plot(figure, "latency"), figures.describe_latency(sizes, rows), table]


def cost_line(cost: Mapping[str, Any] | None) -> str:
    """What a build will take, before it is started."""
    if not cost:
        return ""
    size = f"about {megabytes(cost['bytes'])} in all" if cost.get("bytes") else "as many bytes as the energy needs"
    text = f"{cost['experts']} experts: {size}; takes about {_time(cost['seconds'])} on this machine."
    return f'<p class="ml-cost">{html.escape(text)}</p>'


def _time(seconds: float) -> str:
    return f"{max(5, round(seconds / 5) * 5):.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def fit(names: Sequence[str], values: Sequence[float], most: int) -> list[float]:
    """``values`` for exactly ``most`` sliders."""
    return [values[i] if i < len(names) else 0.0 for i in range(most)]


INTRO = """<ul class="ml-list ml-intro">
<li><b>Routing:</b> which expert each task is sent to, how often the router is wrong, and what the answers are worth
beside the static merge.</li>
<li><b>Rank:</b> how little of each expert is enough; accuracy and bytes move together.</li>
<li><b>One picture:</b> the router’s weights beside the prediction; set them by hand and watch it change.</li>
<li><b>Mixed batch, storage and time:</b> groups, bytes beside other ways, and seconds measured on this machine.</li>
</ul>"""
