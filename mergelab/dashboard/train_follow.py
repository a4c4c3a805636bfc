"""A training run from the page's side: start, pause, go on, stop, and everything new about it as it comes."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from . import drafts, train_events, train_facts, train_form, views
from .errors import sentence
from .page import CHEAP, PRIVATE, Page
from .train_run import Run

#: Followers of runs wait without holding a thread, so many of them may.
FOLLOW: dict[str, Any] = {"concurrency_id": "training", "concurrency_limit": 64, "show_progress": "hidden"}
_TICK = 0.4  # seconds between two looks at a run
_BUTTONS = ("go", "pause", "resume", "stop")


def wire(page: Page, out: dict[str, Any]) -> None:
    runs, fields = page.lab.runs, [out[name] for name in train_form.FIELDS]

    def start(mine: Any, draft: drafts.Draft, selection: dict[str, Any], *given: Any) -> Any:
        try:
            recipe, beside = train_events.asked(page, given, draft, selection)
            run = runs.start(selection, recipe, beside, mine)
        except Exception as error:
            return [views.status(sentence(error), "error"), *views.skip(5)]
        return [views.status("Starting …", "busy"), _watching(run), "run", gr.update(visible=False), False, run.name]

    def resume(mine: Any) -> Any:
        try:
            run = runs.resume(mine)
        except Exception as error:
            return [views.status(sentence(error), "error"), *views.skip(4)]
        return [views.status("Going on …", "busy"), _watching(run), "run", gr.update(visible=False), False]

    def pause(mine: Any) -> Any:
        return _ask(runs.pause, mine)

    def stop(mine: Any) -> Any:
        return _ask(runs.stop, mine)

    def back(mine: Any) -> Any:
        """A visitor who comes again finds their run."""
        run = runs.find(mine)
        return gr.skip() if run is None else _watching(run)

    async def follow(watch: Any) -> AsyncIterator[Any]:
        """Everything that is new about a run, until it is over."""
        run = runs.find(watch["run"]) if watch else None
        if run is None:
            yield views.skip(8)
            return
        seen, told = -1, ""
        while True:
            version, over = run.version, run.over
            line = train_facts.run_line(run)
            if version != seen:
                news = [run.document, run.current, run.result]
                yield [line, *(gr.skip() if value is None else value for value in news), *_buttons(run)]
            elif line != told:
                yield [line, *views.skip(3), *(_buttons(run) if over else views.skip(4))]
            seen, told = version, line
            if over:
                return
            await asyncio.sleep(_TICK)

    buttons = [out[name] for name in _BUTTONS]
    begun = [out[name] for name in ("status", "watch", "shows", "own", "held")]
    out["go"].click(
        start, [out["mine"], page.draft, page.selection, *fields], [*begun, out["mine"]],
        **CHEAP, **PRIVATE,
    )  # fmt: skip
    out["resume"].click(resume, out["mine"], begun, **CHEAP, **PRIVATE)
    for name, handler in (("pause", pause), ("stop", stop)):
        out[name].click(handler, out["mine"], [out["status"], out["watch"]], queue=False, show_progress="hidden",
                        **PRIVATE)  # fmt: skip
    page.first_visit.append([(back, [out["mine"]], [out["watch"]])])
    out["followed"] = out["watch"].change(
        follow, out["watch"], [out["status"], out["live"], out["current"], out["result"], *buttons],
        trigger_mode="multiple", **FOLLOW, **PRIVATE,
    )  # fmt: skip


def _watching(run: Run) -> dict[str, str]:
    """Different each time, so that it counts as a change."""
    return {"run": run.name, "since": uuid.uuid4().hex}


def _ask(verb: Any, mine: Any) -> Any:
    """Pause or stop. What comes of it its follower says: an answer from here could come after that one's last word.
    Where nothing follows the run any more, it is looked at once again."""
    try:
        run = verb(mine)
    except Exception as error:
        return [views.status(sentence(error)), gr.skip()]
    return [gr.skip(), _watching(run) if run.over else gr.skip()]


def _buttons(run: Run) -> list[Any]:
    """Which of Start, Pause, Resume, Stop can be pressed."""
    going, waits = not run.over, run.status in ("paused", "failed")
    return [gr.update(interactive=on) for on in (not going, going, waits, going or waits)]
