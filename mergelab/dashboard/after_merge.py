"""What the sections that work on a finished merge share: their pictures, their job, Stop, what is stale."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gradio as gr

from ..errors import Cancelled
from . import views
from .data_panel import HIGHEST, LOWEST, job_of
from .errors import sentence
from .jobs import Done, Step, Work
from .page import Page, busy

#: Label and value of the splits that unlabelled pictures may come from.
SPLITS = [("validation", "val"), ("test (transductive)", "test")]


def examples_slider(elem_id: str, value: int = 128) -> gr.Slider:
    return gr.Slider(
        LOWEST, HIGHEST, value=value, step=1, label="Examples a task", interactive=True, min_width=220, elem_id=elem_id
    )


def split_radio(elem_id: str) -> gr.Radio:
    return gr.Radio(SPLITS, value="val", label="From the split", elem_id=elem_id, min_width=220)


def follow(
    page: Page, request: gr.Request, start: Callable[[], Work], show: Callable[[Done], list[Any]], *, what: str,
    others: int,
) -> Iterator[list[Any]]:  # fmt: skip
    """A visitor's job: its status line while it runs, then what ``show`` makes of its end.

    ``start`` checks what was asked for and gives the work. ``others``: outputs beside the status line.
    """
    try:
        for item in page.jobs.run(job_of(request), start()):
            if isinstance(item, Step):
                yield [busy(item, what), *views.skip(others)]
            elif isinstance(item, Done):
                yield show(item)
    except Cancelled:
        yield [views.status("Stopped. Nothing was kept."), *views.skip(others)]
    except Exception as error:
        yield [views.status(sentence(error), "error"), *views.skip(others)]


def stopper(page: Page) -> Callable[..., Any]:
    """What a Stop button of such a section does."""

    def stop(request: gr.Request) -> Any:
        return gr.skip() if page.jobs.stop(job_of(request)) else views.status("Nothing is running.")

    return stop


def staleness(page: Page, text: str) -> Callable[..., Any]:
    """Says ``text`` when the merge has moved on from the one that was worked on."""

    def stale(found: Any, draft: Any, selection: dict[str, Any]) -> Any:
        if not found:
            return gr.skip()
        try:
            same = page.recipe(draft, selection).hash == found["hash"]
        except Exception:  # it says so elsewhere
            same = False
        return gr.skip() if same else views.note(text)

    return stale


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def accuracy_cells(score: Mapping[str, Any]) -> list[str]:
    """Two cells of a table: accuracy before and after, in %."""
    return [views.percent(score["before"]), f"<b>{views.percent(score['after'])}</b>"]


def mean_cells(scores: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The same two cells of the row of means."""
    return accuracy_cells({end: mean([score[end] for score in scores.values()]) for end in ("before", "after")})
