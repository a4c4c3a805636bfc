"""What the section on calibrated features shows: pure functions of what a calibration found, as plain values."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from .. import figures
from . import after_merge, controls, views
from .data_views import _cost, time_text

_MOST_NAMES = 4
_TEXT = (
    "Block after block, the layers get the weights whose outputs on the merge’s own features are nearest to each "
    "expert’s: a closed form, without labels. The result is a model like the merge, and needs no task id."
)


def lead(*, transductive: bool = False) -> str:
    """What is done, with its badges."""
    badge = controls.data_badge({"data": "unlabelled"}, transductive=transductive)
    return f'<p class="ml-lead">{badge} {html.escape(_TEXT)}</p>'


def cost_line(found: Mapping[str, Any]) -> str:
    """Before it is started: how many pictures pass what, and about how long."""
    tasks = f"{found['tasks']} {'task' if found['tasks'] == 1 else 'tasks'}"
    return _cost(
        f"{tasks}, {found['pictures']} images in all, each passed through the merge and its expert for every one of "
        f"{found['blocks']} blocks: about {time_text(found['seconds'])} (from {found['timed']} images timed here), "
        "then measuring. Nothing is kept on disk."
    )


def found_view(found: Mapping[str, Any] | None) -> list[Any]:
    """Sentence, bars, table, what was fitted, what was not and why, the command, its recipe."""
    if not found:
        return views.skip(7)
    titles, scores = found["titles"], found["accuracy"]
    ends = [{titles.get(t, t): scores[t][end] for t in found["tasks"]} for end in ("before", "after")]
    recipe = views.link("recipe.yaml", found["yaml"], "recipe.yaml", "application/yaml")
    return [
        figures.describe_calibration(*ends), views.plot(_bars(found), "calibration"), _table(found), fitted_text(found),
        skipped_table(found["skipped"]), found["shell"], f'<p class="ml-files">{recipe}</p>',
    ]  # fmt: skip


def _bars(found: Mapping[str, Any]) -> Any:
    rows = []
    for series, role, end in (("merged", "merged", "before"), ("calibrated", "kept", "after")):
        for task in found["tasks"]:
            score = found["accuracy"][task]
            low, high = score[f"{end}_interval"]
            rows.append({"series": series, "role": role, "title": found["titles"].get(task, task),
                         "accuracy": score[end], "low": low, "high": high})  # fmt: skip
    return figures.accuracy_bars(rows, axis="accuracy", height=340)


def _table(found: Mapping[str, Any]) -> str:
    titles, scores = found["titles"], found["accuracy"]
    body, lines = [], []
    for task in found["tasks"]:
        score = scores[task]
        body.append([html.escape(titles.get(task, task)), *after_merge.accuracy_cells(score), _change(score)])
        lines.append([task, score["n"], score["before"], score["after"], *score["before_interval"],
                      *score["after_interval"]])  # fmt: skip
    means = {end: after_merge.mean([s[end] for s in scores.values()]) for end in ("before", "after")}
    body.append(["Mean", *after_merge.mean_cells(scores), _change(means)])
    columns = ["task", "n", "before", "after", "before low", "before high", "after low", "after high"]
    file = views.link("Numbers as CSV", views.to_csv(columns, lines), "mergelab-calibration.csv")
    caption = f"Accuracy in % {views.scope(dict(found))}"
    table = views.table(["Task", "Before", "After", "Points"], body, caption, summary_from=len(lines))
    return f'{table}<p class="ml-files">{file}</p>'


def _change(score: Mapping[str, Any]) -> str:
    return f"{100 * (score['after'] - score['before']):+.1f}"


def fitted_text(found: Mapping[str, Any]) -> str:
    """How much was fitted and by how much it moved; which data was used."""
    tensors: Mapping[str, float] = found["tensors"]
    text = "Nothing was fitted."
    if tensors:
        most = max(tensors, key=tensors.__getitem__)
        moved = after_merge.mean(list(tensors.values()))
        text = (
            f"{len(tensors)} tensors of {len(found['blocks'])} blocks were fitted. They moved by {moved:.0%} of their "
            f"length on average, most of all {most} ({tensors[most]:.0%})."
        )
    values = ", ".join(f"{name} {value:g}" for name, value in found["settings"].items())
    used = f"Data used: {found['data_used']}."
    if found["merge_used"]:
        used += f" The merge itself: {found['merge_used']}."
    return f"<p>{html.escape(text)} With {values}.</p><p>{html.escape(used)}</p>"


def skipped_table(skipped: Mapping[str, str]) -> str:
    """The layers that were left as they were, by reason."""
    groups: dict[str, list[str]] = {}
    for name, why in skipped.items():
        groups.setdefault(why, []).append(name)
    if not groups:
        return views.note("No layer of these blocks was left out.")
    body = []
    for why, names in groups.items():
        some = ", ".join(names[:_MOST_NAMES]) + (" …" if len(names) > _MOST_NAMES else "")
        body.append([html.escape(why), str(len(names)), html.escape(some)])
    return views.table(["Why", "Layers", "Such as"], body, "Layers that were left as they were, and why", words=True)
