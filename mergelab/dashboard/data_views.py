"""What the Data panel says: what is asked for, what it costs, what is at hand."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import controls, views
from .jobs import Done

if TYPE_CHECKING:
    from ..recipe import Recipe
    from .page import Page

_WORDS = {
    "gram": "what goes into every layer", "kfac": "what goes into every layer and the gradients that come back",
    "diag": "the squared gradient of every weight", "block": "the whole Fisher block of small vectors",
}  # fmt: skip


def lead(method: Mapping[str, Any], *, transductive: bool = False) -> str:
    """What the method looks at, in one line, with its badges; ``transductive`` where that is the test split."""
    text = (
        "Learns its coefficients on pictures without their labels."
        if method.get("learns")
        else "Looks at a few pictures of every task before it merges."
    )
    return f"{views.heading('Data')}<p>{controls.data_badge(method, transductive=transductive)} {html.escape(text)}</p>"


def cost_line(found: Mapping[str, Any]) -> str:
    """Bytes and seconds of a collection, before it is started."""
    counts = list(found["examples"].values())
    many = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    what = " and ".join(_WORDS[kind] for kind in found["kinds"])
    size = f"{found['bytes'] / 1e6:.0f} MB" if found["bytes"] < 1e9 else f"{found['bytes'] / 1e9:.1f} GB"
    if found["kept"]:
        return _cost(f"Kept from an earlier time: {size} for {len(counts)} tasks. Nothing will be collected again.")
    return _cost(
        f"{len(counts)} tasks, {many} images each: {what}. Takes {size} of disk and about "
        f"{time_text(found['seconds'])} (from {found['timed']} images timed here)."
    )


def learning_cost(recipe: Recipe, kept: Mapping[str, Any] | None) -> str:
    """What learning will look at; seconds are only known from an earlier run."""
    if kept is not None:
        return _cost(f"Learned before in {time_text(kept['seconds'])}: nothing will be learned again.")
    from ..methods import get

    values = {**get(recipe.merge_method).defaults(), **recipe.parameters}
    looks = int(values["steps"]) * int(values["batch"]) * int(values["batches"]) * len(recipe.models)
    return _cost(
        f"{values['steps']} steps look at {looks} images in all, forward and back: about "
        f"{time_text(looks / _PER_SECOND)} on two cores; the bar shows the rest. A few kB are kept."
    )


#: Pictures that pass forward and back a second, of a small model on two cores.
_PER_SECOND = 60.0


def collected_line(item: Done) -> str:
    made = item.value
    return views.status(
        f"In use: {made['text']}, {len(made['tasks'])} tasks ({_kinds(made)}; {time_text(item.seconds)})."
    )


def learned_line(item: Done) -> str:
    made = item.value
    return views.status(f"Learned in {time_text(made['seconds'])} on {made['data_used']}.")


def at_hand(page: Page, form: Mapping[str, Any], selection: Mapping[str, Any]) -> str:
    """Which statistics the recipe uses now."""
    name = form.get("statistics")
    if not name:
        return ""
    try:
        made = page.lab.data(selection).about(name)
    except Exception as error:
        from .errors import sentence

        return views.note(sentence(error), "error")
    return views.status(f"In use: {made['text']}, {len(made['tasks'])} tasks ({_kinds(made)}).")


def _kinds(made: Mapping[str, Any]) -> str:
    return ", ".join(made["kinds"]) + (f", {made['fisher']} labels" if made["fisher"] else "")


def _cost(text: str) -> str:
    return f'<p class="ml-cost">{html.escape(text)}</p>'


def time_text(seconds: float) -> str:
    if seconds < 10:
        return f"{max(1, round(seconds)):.0f} s"
    return f"{round(seconds / 5) * 5:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
