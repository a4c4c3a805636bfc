"""What the Train tab shows of a run, its own or a recorded one, and how a person moves through its rounds."""

from __future__ import annotations

from typing import Any

import gradio as gr

from . import train_facts, train_views, views
from .errors import sentence
from .page import CHEAP, PRIVATE, Page

_VIEW = ("text", "curves", "table", "merges", "radar", "cosines", "cosine_text", "cosine_table", "facts")
#: More tasks than this, and the curves begin with the means alone.
_LINES = 4


def wire(page: Page, out: dict[str, Any]) -> None:
    methods = {name: str(method["title"]) for name, method in page.methods.items()}
    view = [out[name] for name in _VIEW]

    def draw(document: Any, place: float, shown: list[str]) -> list[Any]:
        at = int(place)
        figure, text = train_views.curves(document, at, shown, methods)
        radar, table = train_views.round_view(document, at)
        cosines = train_facts.cosine_view(train_facts.cosines_of(document, at))
        return [text, figure, table, train_views.merges_view(document, at, methods), radar, *cosines,
                train_facts.facts_view(document, at)]  # fmt: skip

    def arrive(document: Any, place: float, shown: list[str], held: bool) -> list[Any]:
        """New rounds: the slider goes along with them, or stays where a person put it."""
        if not document or not document["runs"]:
            return views.skip(7 + len(view))
        record, last = train_views.main(document), train_views.last_round(document)
        at = int(place) if held and place <= last else last
        choices = [(record["titles"].get(task, task), task) for task in record["tasks"]]
        lines = [task for task in shown if task in record["tasks"]]
        if not lines and len(choices) <= _LINES and not shown:
            lines = list(record["tasks"])
        slider = gr.update(maximum=max(1, last), value=at, interactive=last > 0,
                           label=train_views.slider_label(document, at))  # fmt: skip
        return [
            gr.update(visible=True), "", slider, gr.update(choices=choices, value=lines), train_views.files(document),
            train_facts.costs_view(document), train_facts.whole_table(document, methods), *draw(document, at, lines),
        ]  # fmt: skip

    def scrub(document: Any, place: float, shown: list[str]) -> list[Any]:
        """Another round of what is shown."""
        if not document or not document["runs"]:
            return views.skip(2 + len(view))
        label, held = train_views.slider_label(document, int(place)), place < train_views.last_round(document)
        return [held, gr.update(label=label), *draw(document, place, shown)]

    def show_live(live: Any, shows: str) -> Any:
        """A run's news, unless a recorded run is looked at."""
        return live if shows == "run" else gr.skip()

    def back_to_own(live: Any) -> Any:
        return [live, "run", gr.update(visible=False), False]

    def open_recorded(name: str | None, live: Any) -> Any:
        try:
            document = page.lab.recording(name)
        except Exception as error:
            return [views.status(sentence(error), "error"), *views.skip(7)]
        last = train_views.last_round(document)
        said = views.status(f"Recorded: {document.get('title') or name}. Move the slider through its {last} rounds.")
        slider = gr.update(maximum=max(1, last), value=last)
        return [said, document, slider, [], "recorded", name, gr.update(visible=live is not None), False]

    given = [out["document"], out["place"], out["shown"]]
    whole = [out[name] for name in ("after", "intro", "place", "shown", "files", "costs", "whole")]
    out["document"].change(
        arrive, [*given, out["held"]], [*whole, *view], trigger_mode="always_last", **CHEAP, **PRIVATE
    )
    out["place"].release(
        scrub, given, [out["held"], out["place"], *view], trigger_mode="always_last", **CHEAP, **PRIVATE
    )
    out["shown"].input(draw, given, view, trigger_mode="always_last", **CHEAP, **PRIVATE)
    out["live"].change(show_live, [out["live"], out["shows"]], out["document"], **CHEAP, **PRIVATE)
    out["own"].click(
        back_to_own, out["live"], [out["document"], out["shows"], out["own"], out["held"]], **CHEAP, **PRIVATE
    )
    out["open"].click(
        open_recorded, [out["recording"], out["live"]],
        [out[name] for name in ("status", "document", "place", "shown", "shows", "opened", "own", "held")],
        **CHEAP, **PRIVATE,
    )  # fmt: skip
