"""The current model of a run on the other tabs: a row of Results that goes along with the rounds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from ..errors import Cancelled
from . import views
from .errors import sentence
from .jobs import Done
from .page import CHEAP, PRIVATE, REFINE, Page, session_of


def wire(page: Page, out: dict[str, Any], results: dict[str, Any]) -> None:
    def keep(result: views.Result | None, kept: list[views.Result], chosen: list[str]) -> Any:
        """Put the run's newest round in the place of its last one among the kept results."""
        if not result:
            return gr.skip(), gr.skip()
        now, labels = kept_with(result, kept, chosen or [], page.settings.max_kept)
        return now, gr.update(choices=[other["label"] for other in now], value=labels, visible=True)

    def refine(watch: Any, request: gr.Request) -> Iterator[Any]:
        """Measure the model of a run that is done on whole test sets, as the Merge tab does with what it shows."""
        yield gr.skip()
        if not watch:
            return

        def work(progress: Any, stop: Any) -> Any:
            return page.lab.runs.whole(watch["run"], progress, stop)

        try:
            for item in page.jobs.run(session_of(request), work, background=True):
                if isinstance(item, Done) and item.value is not None:
                    yield item.value
        except Cancelled:
            yield gr.skip()
        except Exception as error:  # the numbers on fewer items stay
            sentence(error)
            yield gr.skip()

    out["followed"].then(refine, out["watch"], out["result"], show_progress="hidden", **REFINE, **PRIVATE)
    out["result"].change(
        keep, [out["result"], page.kept, results["shown"]], [page.kept, results["shown"]], **CHEAP, **PRIVATE
    )


def kept_with(
    result: views.Result, kept: list[views.Result], chosen: list[str], most: int
) -> tuple[list[views.Result], list[str]]:
    """The kept results with the run's own row renewed, and which of them are compared: the new row where the old one
    was, or where it is the first of this run."""
    old = next((other for other in kept if other["id"] == result["id"]), None)
    others = [other for other in kept if other["id"] != result["id"]]
    taken = {other["label"] for other in others}
    label = result["label"]
    number = 2
    while label in taken:
        label, number = f"{result['label']} ({number})", number + 1
    now = [*others, {**result, "label": label}][-most:]
    shown = old is None or old["label"] in chosen
    names = [other["label"] for other in now if other["label"] in chosen or (shown and other["id"] == result["id"])]
    return now, names
