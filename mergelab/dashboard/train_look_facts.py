"""From a look at training runs to its numbers: cosines beside fair controls, drift, epochs' shares, what it costs."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from typing import Any

from .. import figures
from . import views
from .data_views import time_text
from .train_look_views import NAMES, Look, drawn, missing, own
from .train_views import Document

#: Pictures a task that the page looks at, and places along each axis and line.
LIMIT, STEPS = 20, 9
_SUMMED = "summed over rounds"


# ---- cosines ---------------------------------------------------------------------------------------------------------


def cosine_lines(look: Look) -> tuple[list[str], dict[str, list[float | None]]]:
    """Epochs, and mean |cos| at each: of every run's rounds, of the experts from the joint model, of what each task
    has contributed in all rounds so far."""
    rows, runs = look["orthogonality"]["rows"], look["runs"]
    places = sorted({float(row["epochs"]) for row in rows if row["epochs"] is not None})
    found: dict[str, list[float | None]] = {}
    for row in rows:
        if row["epochs"] is not None:
            line = found.setdefault(str(runs[row["run"]]["title"]), [None] * len(places))
            line[places.index(float(row["epochs"]))] = row["mean_abs"]
    for name, way in look["orthogonality"]["drift"].items():
        epochs = {row["round"]: row["epochs"] for row in rows if row["run"] == name}
        line = [None] * len(places)
        for row in way:
            if epochs.get(row["round"]) is not None:
                line[places.index(float(epochs[row["round"]]))] = row["contributed"]["mean_abs"]
        found[f"{runs[name]['title']}, {_SUMMED}"] = line
    return [f"{place:g}" for place in places], found


def orthogonality(look: Look | None) -> list[Any]:
    """Figure, sentence, table of the mean |cosine| of task vectors with the fair controls."""

    def make() -> list[Any]:
        assert look is not None
        epochs, series = cosine_lines(look)
        roles = {own(look): "merged", str(look["runs"].get("one_shot", {}).get("title", "")): "experts"}
        figure = figures.layer_lines(epochs, series, roles=roles, height=360)
        figure.update_xaxes(title={"text": "epochs a task", "font": {"size": 12}}, tickangle=0)
        figure.update_yaxes(title={"text": "mean |cos|", "font": {"size": 12}})
        body = []
        for row in look["orthogonality"]["rows"]:
            body.append([html.escape(str(look["runs"][row["run"]]["title"])), str(row["round"]),
                         "–" if row["epochs"] is None else f"{row['epochs']:g}", views.decimals(row["mean_abs"]),
                         f"{row['norm']:.3g}"])  # fmt: skip
        caption = "Task vectors: mean |cosine| over pairs of tasks, and mean length"
        table = views.table(["Of", "Round", "Epochs", "Mean |cos|", "Length"], body, caption)
        left = look.get("left_out")
        why = left.get("control") if isinstance(left, Mapping) else None
        table += views.note(f"{NAMES['control'].capitalize()}: {why}") if why else ""
        return [views.plot(figure, "orthogonality"), _cosine_text(series), table]

    return drawn(look, "orthogonality", make)


def _cosine_text(series: Mapping[str, list[float | None]]) -> str:
    ends = {name: next((v for v in reversed(line) if v is not None), None) for name, line in series.items()}
    told = "; ".join(f"{name} {value:.3f}" for name, value in ends.items() if value is not None)
    if not told:
        return "With one task there is no pair of task vectors to compare."
    return (
        f"Mean |cos| at the last round of each: {told}. What tasks share is learnt in the first rounds, so a small "
        "cosine in a late one says little by itself: hold it against what each task has contributed in all rounds, "
        "against experts of as many epochs, and against experts of a joint model, which has learnt it too."
    )


def drift(look: Look | None) -> str:
    """Table of how the rounds go and how the tasks' vectors lie to where they go."""

    def make() -> list[Any]:
        assert look is not None
        out = []
        for name, way in look["orthogonality"]["drift"].items():
            body = []
            for row in way:
                known = [value for value in row["to_drift"].values() if value is not None]
                given = row["contributed"]
                body.append([
                    str(row["round"]), f"{row['step']:.3g}", views.decimals(row["to_previous"]),
                    f"{row['from_start']:.3g}",
                    views.decimals(math.fsum(known) / len(known) if known else None), views.decimals(given["mean_abs"]),
                    f"{math.fsum(given['norms'].values()) / len(given['norms']):.3g}",
                ])  # fmt: skip
            head = ["Round", "Step", "cos to step before", "From start", "cos of tasks to drift", "Mean |cos|, summed",
                    "Length, summed"]  # fmt: skip
            title = html.escape(str(look["runs"][name]["title"]))
            out.append(views.table(head, body, f"Where the rounds of {title} go; the drift is the way from the start"))
        return ["".join(out) or missing(look, "drift")]

    return str(drawn(look, "orthogonality", make)[-1]) if look and "orthogonality" in look else ""


# ---- the first epoch -------------------------------------------------------------------------------------------------


def shares(look: Look | None) -> str:
    """The first epoch's share of an expert's way, beside an even split."""

    def make() -> list[Any]:
        assert look is not None
        body = [
            [html.escape(str(look["titles"].get(task, task))), str(len(one["epochs"])), views.decimals(one["even"], 2),
             f"<b>{views.decimals(one['norm'], 2)}</b>", views.decimals(one["moved"], 2),
             " ".join(views.decimals(share, 2) for share in one["first_five"])]
            for task, one in look["shares"].items()
        ]  # fmt: skip
        head = ["Task", "Epochs", "Even split", "Of gradient norms", "Of the way", "Norms, first five"]
        return [views.table(head, body, "The first epoch’s share in an expert’s training") + views.note(_SHARES)]

    return str(drawn(look, "shares", make)[-1])


_SHARES = (
    "Above the even split the first epoch is larger than the average one; only above 0.50 is it larger than all others "
    "together."
)


# ---- what it costs ---------------------------------------------------------------------------------------------------


def planned(document: Document) -> dict[str, dict[str, int]]:
    """What a look at a run of the page will measure at most, as :func:`mergelab.runs.training.look.look` tells it:
    by part ``evaluations`` of models and ``pictures``."""
    from ..runs.training.landscape import evaluations

    runs = list(document["runs"].values())
    tasks = len(runs[0]["tasks"])
    wholes = [record for record in runs if record["kind"] != "experts"]
    apart = tasks if len(wholes) < len(runs) else 0
    found = {}
    if 1 + len(wholes) + apart >= 3 or any(len(record["rounds"]) > 1 for record in wholes):
        count = evaluations(STEPS)
        found["landscape"] = {"evaluations": count, "pictures": count * tasks * LIMIT}
    pairs, neighbours = len(wholes) * (len(wholes) + 1) // 2, max(0, apart - 1)
    if pairs + neighbours:
        found["barriers"] = {"evaluations": (pairs + neighbours) * STEPS,
                             "pictures": (pairs * tasks + neighbours * 2) * STEPS * LIMIT}  # fmt: skip
    return found


def cost_line(cost: Mapping[str, Mapping[str, int]], document: Document | None) -> str:
    """What is going to be measured, and about how long that takes."""
    if not cost:
        return views.note("Nothing needs to be measured for it.")
    parts = [f"{NAMES[name]}: {part['evaluations']} evaluations" for name, part in cost.items()]
    count = sum(part["pictures"] for part in cost.values())
    seconds = _seconds(document, count)
    about = f", about {time_text(seconds)} here" if seconds else ""
    return views.note(f"{'; '.join(parts).capitalize()}; {count:,} pictures pass{about}. Nothing is chosen by them.")


def _seconds(document: Document | None, pictures: int) -> float | None:
    """From how long the run's own training took for its pictures."""
    from ..runs.training.costs import FORWARD

    runs = list((document or {"runs": {}})["runs"].values())
    costs = runs[0]["costs"] if runs else {}
    samples, seconds = costs.get("samples"), costs.get("training_seconds")
    return float(seconds) / samples * pictures * FORWARD if samples and seconds else None
