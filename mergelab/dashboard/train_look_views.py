"""From a look at training runs (plain data) to the figures of weight space: landscape, lines, models on paper.

A *look* is what :mod:`mergelab.runs.training.look` writes. It may come from a file, so a part that is not as it should
be is a sentence in its place, and titles are text. Pure functions.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .. import figures
from . import views
from .train_views import split_words

Look = Mapping[str, Any]
MEAN = "mean"
NAMES = {"landscape": "the landscape", "barriers": "the lines between models", "projection": "the models on paper",
         "orthogonality": "how task vectors lie", "shares": "the first epoch's share", "drift": "the drift",
         "control": "experts from the joint model"}  # fmt: skip
#: What a document that is not as it should be may raise when it is drawn.
DAMAGED = (KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError)
#: Colours end at this many times the loss of the worst marked model, and on no more than so many positions.
_CAP, _PLACES = 1.5, 40
#: More models than these are in the file alone.
_ROWS = 40


def drawn(look: Look | None, part: str, make: Callable[[], list[Any]]) -> list[Any]:
    """Figure, sentence and table of a part; where it is missing or damaged, a sentence that says so."""
    if not look:
        return [None, "", ""]
    if part not in look:
        return [None, "", missing(look, part)]
    try:
        return make()
    except DAMAGED:
        what = NAMES[part][:1].upper() + NAMES[part][1:]
        return [None, "", views.note(f"{what}: this part of the file is damaged, so it is not drawn.", "error")]


def missing(look: Look, part: str) -> str:
    """Why a part is not there."""
    left = look.get("left_out")
    why = left.get(part) if isinstance(left, Mapping) else None
    what = NAMES[part][:1].upper() + NAMES[part][1:]
    return views.note(f"{what}: {why}" if why else f"{what}: not looked at.")


def pictures(look: Look) -> str:
    """On which pictures losses were measured, in words."""
    counts = sorted(set(look["items"].values()))
    many = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1]))) if counts else "the"
    return f"{many} {split_words(look['split'])} pictures a task"


def own(look: Look) -> str:
    """The title of the run that the look is about: it is drawn as the page's own result is."""
    runs = look.get("runs")
    return str(runs["atm"]["title"]) if isinstance(runs, Mapping) and "atm" in runs else ""


def at(value: float) -> str:
    """A coordinate; rounding is nothing."""
    return "0" if abs(value) < 1e-9 else f"{value:.3g}"


# ---- the landscape ---------------------------------------------------------------------------------------------------


def surfaces(look: Look | None) -> list[tuple[str, str]]:
    """(title, name) of what the landscape can show: the mean loss, and each task's."""
    land = (look or {}).get("landscape")
    tasks = land.get("tasks") if isinstance(land, Mapping) else None
    titles = (look or {}).get("titles")
    known = titles if isinstance(titles, Mapping) else {}
    return [("mean loss of all tasks", MEAN),
            *((f"loss of {known.get(task, task)}", str(task)) for task in tasks or {})]  # fmt: skip


def heights(look: Look, of: str) -> list[list[float | None]]:
    land = look["landscape"]
    found: list[list[float | None]] = land["loss"] if of == MEAN else land["tasks"][of]["loss"]
    return found


def cap(look: Look | None, of: str) -> tuple[float, float, float, float] | None:
    """Where the colours may end and where they end at first: low, high, step, value; None for a flat or missing one.

    Losses far from the models may be many times as high as those between them, and would take all the colours.
    """
    try:
        assert look is not None
        known = [float(v) for row in heights(look, of) for v in row if v is not None and math.isfinite(v)]
        marked = [float(point["loss"]) for point in look["landscape"]["points"]]
        low, high = min(known), max(known)
    except (AssertionError, *DAMAGED):
        return None
    if not high > low:
        return None
    step = _round_step((high - low) / _PLACES)
    top = math.ceil(high / step) * step
    worst = max(marked, default=high) if of == MEAN else sorted(known)[len(known) // 2]
    value = min(top, max(math.ceil(_CAP * worst / step) * step, low + 4 * step))
    return round((math.floor(low / step) + 1) * step, 9), round(top, 9), step, round(value, 9)


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def landscape(look: Look | None, of: str, top: float | None) -> list[Any]:
    """Figure, sentence, table of the marked models."""

    def make() -> list[Any]:
        assert look is not None
        land = look["landscape"]
        title = {name: title for title, name in surfaces(look)}.get(of, of)
        ways = {_way(name): [spot[:2] for spot in way] for name, way in land["paths"].items()}
        figure = figures.landscape(
            land["xs"], land["ys"], heights(look, of), land["points"], ways,
            looks={_way(name): name for name in land["paths"]}, title="mean loss" if of == MEAN else title, top=top,
            height=500,
        )  # fmt: skip
        body = [
            [html.escape(str(row["title"])), views.decimals(row["loss"]), views.percent(row["accuracy"]), at(row["x"]),
             at(row["y"])]
            for row in land["points"]
        ]  # fmt: skip
        caption = f"Models that span the plane: mean loss, accuracy in % on {pictures(look)}, and where they lie"
        table = views.table(["Model", "Loss", "Accuracy", "x", "y"], body, caption)
        far = [[html.escape(str(name)), str(len(way) - 1), at(max(spot[2] for spot in way)),
                f"{at(way[-1][0])}, {at(way[-1][1])}"] for name, way in land["paths"].items()]  # fmt: skip
        table += views.table(["Path", "Rounds", "Off the plane", "Ends at x, y"], far, _OFF) if far else ""
        return [views.plot(figure, "landscape"), _landscape_text(look, of, title), table]

    return drawn(look, "landscape", make)


_OFF = "Paths: how far off the plane they lie at most, for there the surface is not theirs"


def _landscape_text(look: Look, of: str, title: str) -> str:
    land = look["landscape"]
    low, x, y = min((value, x, y) for y, row in zip(land["ys"], heights(look, of), strict=True)
                    for x, value in zip(land["xs"], row, strict=True) if value is not None)  # fmt: skip
    high = max(value for row in heights(look, of) for value in row if value is not None)
    best = min(land["points"], key=lambda row: row["loss"])
    text = (
        f"On the plane through {_and([str(row['title']) for row in land['points'][:3]])}, the {title} goes from "
        f"{low:.2f} at ({at(x)}, {at(y)}) to {high:.2f}"
    )
    if of == MEAN:
        gap = best["loss"] - low
        text += f"; of the three, {best['title']} is lowest with {best['loss']:.2f}"
        text += ", and no place of the grid is lower" if gap <= 0 else f", {gap:.2f} above the lowest place of the grid"
    return text + "."


def _way(name: str) -> str:
    """What a path is called, for its run is in the legend as a point too."""
    return f"rounds of {name}"


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


# ---- lines between models --------------------------------------------------------------------------------------------


def lines(look: Look | None) -> list[tuple[str, int]]:
    """(title, place) of the lines, as a list to choose from."""
    rows = (look or {}).get("barriers")
    try:
        return [(_line(row), place) for place, row in enumerate(rows or ())]
    except DAMAGED:
        return []


def _line(row: Mapping[str, Any]) -> str:
    own = len(row["barriers"])
    return f"{row['ends'][0]} to {row['ends'][1]}, {own} task{'' if own == 1 else 's'}"


def barriers(look: Look | None, place: int | None) -> list[Any]:
    """Figure and sentence of one line, table of all."""

    def make() -> list[Any]:
        assert look is not None
        rows, titles = look["barriers"], look["titles"]
        row = rows[max(0, min(int(place or 0), len(rows) - 1))]
        curves = {titles.get(name, name): values for name, values in row["curves"].items()}
        figure = figures.barriers(row["alphas"], curves, ends=(row["ends"][0], row["ends"][1]), height=360)
        body = []
        for one in rows:
            task = max(one["barriers"], key=lambda name: one["barriers"][name])
            losses, high = one["curves"]["mean"], one["barriers"][task]
            body.append([
                html.escape(" – ".join(map(str, one["ends"]))), f"{losses[0]:.2f} → {losses[-1]:.2f}",
                f"<b>{views.decimals(one['barrier'])}</b>",
                f"{views.decimals(high)} <small>{html.escape(str(titles.get(task, task)))}</small>"
                if high > 0 else "–",
            ])  # fmt: skip
        caption = f"Barriers: how far the loss rises above the straight line between its ends; on {pictures(look)}"
        head = ["Line", "Mean loss", "Barrier", "Highest of a task"]
        return [views.plot(figure, "barriers"), _line_text(row), views.table(head, body, caption)]

    return drawn(look, "barriers", make)


def _line_text(row: Mapping[str, Any]) -> str:
    one, two = row["ends"]
    losses, high = row["curves"]["mean"], row["barrier"]
    text = f"From {one} to {two} the mean loss goes from {losses[0]:.2f} to {losses[-1]:.2f}"
    if high > 0.005:
        return f"{text}, and between them rises up to {high:.2f} above the chord (dotted): a barrier."
    low = min(range(len(losses)), key=lambda place: losses[place])
    if 0 < low < len(losses) - 1:
        text += f", lowest ({losses[low]:.2f}) at a share of {row['alphas'][low]:.2f} of {two}"
    return f"{text}; it never rises above the chord (dotted), so there is no barrier."


# ---- models on paper -------------------------------------------------------------------------------------------------


def projection(look: Look | None) -> list[Any]:
    """Figure, sentence, coordinates."""

    def make() -> list[Any]:
        assert look is not None
        flat = look["projection"]
        figure = figures.checkpoints(
            flat, flat["groups"], {_way(name): way for name, way in flat["paths"].items()},
            looks={_way(name): name for name in flat["paths"]}, merged=own(look), height=440,
        )  # fmt: skip
        first, second = flat["explained"]
        rows = list(zip(flat["names"], flat["coordinates"], strict=True))
        text = (
            f"{len(rows)} models in the two directions in which they differ most, which hold {first + second:.0%} of "
            f"how they differ ({first:.0%} and {second:.0%}); what lies close here may be apart in the others."
        )
        body = [[_grouped(str(name), str(flat["groups"][name])), at(x), at(y)] for name, (x, y) in rows[:_ROWS]]
        caption = "Coordinates, in units of parameter distance"
        caption += f" (the first {_ROWS} of {len(rows)})" if len(rows) > _ROWS else ""
        file = views.link(
            "Coordinates as CSV",
            views.to_csv(["model", "group", "x", "y"], [[n, flat["groups"][n], x, y] for n, (x, y) in rows]),
            "mergelab-projection.csv",
        )
        table = views.table(["Model", f"First ({first:.0%})", f"Second ({second:.0%})"], body, caption)
        return [views.plot(figure, "projection"), text, table + f'<p class="ml-files">{file}</p>']

    return drawn(look, "projection", make)


def _grouped(name: str, group: str) -> str:
    return html.escape(name) + ("" if name.startswith(group) else f" <small>{html.escape(group)}</small>")


def files(look: Look | None) -> str:
    """The whole look as JSON."""
    if not look:
        return ""
    link = views.link("All of it as JSON", json.dumps(look), "mergelab-look.json", "application/json")
    return f'<p class="ml-files">{link}<span>Figures: the camera button saves a PNG.</span></p>'
