"""What the tabs share: the lab, the jobs and a visitor's state. States hold plain values only, never tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from ..errors import MergeLabError
from ..recipe import Recipe
from . import drafts, views
from .jobs import Done, Jobs, Step
from .lab import Lab
from .settings import Settings
from .work import predict, result_of

#: One heavy event at a time in the whole process; cheap reads do not wait behind it.
COMPUTE: dict[str, Any] = {"concurrency_id": "compute", "concurrency_limit": 1}
#: Refinements wait for each other, not in front of live answers.
REFINE: dict[str, Any] = {"concurrency_id": "refine", "concurrency_limit": 1}
CHEAP: dict[str, Any] = {"concurrency_id": "cheap", "concurrency_limit": 16, "show_progress": "hidden"}
#: Two renders at once of one visitor change gradio's table of their components while the other reads it.
RENDER: dict[str, Any] = {"show_progress": "hidden", "concurrency_id": "render", "concurrency_limit": 1}
PRIVATE: dict[str, Any] = {"api_visibility": "private"}


@dataclass
class Page:
    """Handed to every tab's builder."""

    lab: Lab
    settings: Settings
    methods: Mapping[str, Mapping[str, Any]]
    selection: gr.State
    form: gr.State
    draft: gr.State
    #: the draft as it was last under a method that needs data: what only such methods show follows this one, so that
    #: a slider of another method does not set all of it going
    data_draft: gr.State
    result: gr.State
    kept: gr.State
    picture: gr.State
    prediction: gr.State
    jobs: Jobs = field(default_factory=Jobs)
    #: what runs once when a visitor arrives: chains of (handler, inputs, outputs)
    first_visit: list[list[tuple[Any, Any, Any]]] = field(default_factory=list)

    def titles(self, selection: Mapping[str, Any]) -> dict[str, str]:
        """Task titles of a selection; empty where its suite cannot be opened."""
        try:
            return self.lab.titles(selection)
        except MergeLabError:
            return {}

    def tasks(self, selection: Mapping[str, Any]) -> list[tuple[str, str]]:
        """(title, name) of the tasks whose experts are on the bench: those that a picture can be read under."""
        titles = self.titles(selection)
        return [(titles[name], name) for name in selection["experts"] if name in titles]

    def recipe(self, draft: drafts.Draft, selection: Mapping[str, Any]) -> Recipe:
        """The recipe of a draft."""
        return drafts.to_recipe(draft, self.methods[draft["method"]], selection)

    def live(
        self, session: str, draft: drafts.Draft, selection: Mapping[str, Any], picture: Mapping[str, Any] | None,
        *, per_task: int | None,
    ) -> Iterator[Step | Done]:  # fmt: skip
        """Merge and measure as a job; ends with ``Done((result, prediction))``. Whole test sets: in the background."""
        recipe = self.recipe(draft, selection)
        self.lab.check_sources(recipe)
        method = self.methods[draft["method"]]
        tuned = drafts.is_tuned(draft, method, selection)

        def work(progress: Any, stop: Any) -> Any:
            result = result_of(
                self.lab, selection, recipe, method, tuned=tuned, per_task=per_task, progress=progress, stop=stop
            )
            wanted = picture if per_task is not None and picture and picture["task"] else None
            return result, predict(self.lab, selection, recipe, wanted, progress, stop) if wanted else None

        yield from self.jobs.run(session, work, background=per_task is None)


def session_of(request: gr.Request | None) -> str:
    """The visitor, as gradio knows them."""
    return getattr(request, "session_hash", None) or "api"


def busy(step: Step, what: str = "") -> str:
    """The status line of a running job."""
    text = step.text[:1].upper() + step.text[1:]
    return views.status(f"{what} {text}".strip() + " …", "busy", step.done, step.total)
