"""The panel "Data" of the Merge tab: which pictures a method may look at, what that costs, and the work itself."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import gradio as gr

from ..errors import Cancelled, MergeLabError
from ..recipe import Recipe
from . import data_views, drafts, views
from .errors import sentence
from .init_form import own_data
from .jobs import Done, Step
from .page import CHEAP, PRIVATE, Page, busy, session_of

LOWEST, HIGHEST, USUAL = 10, 1000, 64
#: One visitor's collecting must not keep another's slider from starting; the jobs still compute one at a time.
DATA: dict[str, Any] = {"concurrency_id": "data", "concurrency_limit": 8, "show_progress": "hidden"}
_SPLITS = [("validation", "val"), ("test (transductive)", "test")]
_FISHERS = [("the given labels (empirical)", "empirical"), ("drawn by the expert (sampled)", "sampled"),
            ("every label, weighed (exact)", "exact")]  # fmt: skip


def build(first: dict[str, Any]) -> dict[str, Any]:
    """Lay the panel out; hidden while the method needs no data."""
    out: dict[str, Any] = {"made": gr.State(None), "drawn": gr.State("")}
    names = [name for _, name in first["tasks"]]
    with gr.Column(visible=False, elem_id="data-panel", min_width=0) as out["panel"]:
        out["lead"] = gr.HTML("", elem_id="data-lead")
        out["tasks"] = gr.CheckboxGroup(
            first["tasks"], value=names, label="Tasks (these experts are merged)", elem_id="data-tasks",
            interactive=True,
        )  # fmt: skip
        out["examples"] = gr.Slider(
            LOWEST, HIGHEST, value=USUAL, step=1, label="Examples a task", interactive=True, elem_id="data-examples"
        )
        out["split"] = gr.Radio(_SPLITS, value="val", label="From the split", interactive=True, elem_id="data-split")
        out["fisher"] = gr.Dropdown(
            _FISHERS, value="empirical", label="Labels of the Fisher", interactive=True, filterable=False,
            elem_id="data-fisher",
        )  # fmt: skip
        out["cost"] = gr.HTML("", elem_id="data-cost")
        with gr.Row(elem_id="data-buttons"):
            out["collect"] = gr.Button("Collect", variant="primary", elem_id="data-collect", min_width=120)
            out["stop"] = gr.Button("Stop", variant="stop", elem_id="data-stop", min_width=70, scale=0)
        out["status"] = gr.HTML("", elem_id="data-status")
    return out


def wire(page: Page, out: dict[str, Any]) -> None:
    source = [page.draft, page.selection, *(out[name] for name in ("tasks", "examples", "split", "fisher"))]
    _wire_cost(page, out, source)
    _wire_collect(page, out, source)

    def mark(split: str, draft: drafts.Draft) -> str:
        """Looking at test images is said at once."""
        return data_views.lead(page.methods[draft["method"]], transductive=split == "test")

    def redraw(form: drafts.Draft, selection: dict[str, Any], before: str) -> list[Any]:
        """The panel for the method of the form: what is asked, what is at hand."""
        method = page.methods[form["method"]]
        if not wants_data(method):
            return [gr.update(visible=False), *views.skip(7), uuid.uuid4().hex]
        tasks = page.tasks(selection)
        known = {name for _, name in tasks}
        on = [name for name, model in form["models"].items() if model["on"] and name in known]
        learns, own = method.get("learns"), own_data(method)
        examples = min(HIGHEST, max(LOWEST, form["parameters"].get("examples", USUAL))) if own else gr.skip()
        split = form["parameters"].get("inputs", "val") if own else before
        return [
            gr.update(visible=True), data_views.lead(method, transductive=split == "test"),
            gr.update(choices=tasks, value=on), examples, split,
            gr.update(visible=method["data"] == "labelled"), gr.update(value="Learn" if learns else "Collect"),
            data_views.at_hand(page, form, selection), uuid.uuid4().hex,
        ]  # fmt: skip

    out["split"].input(mark, [out["split"], page.draft], out["lead"], **CHEAP, **PRIVATE)
    page.form.change(
        redraw, [page.form, page.selection, out["split"]],
        [out["panel"], out["lead"], out["tasks"], out["examples"], out["split"], out["fisher"], out["collect"],
         out["status"], out["drawn"]], **CHEAP, **PRIVATE,
    )  # fmt: skip


def _wire_cost(page: Page, out: dict[str, Any], source: list[Any]) -> None:
    def cost(draft: drafts.Draft, selection: dict[str, Any], request: gr.Request, *values: Any) -> Iterator[Any]:
        """What the work would take, before it is started."""
        method = page.methods[draft["method"]]
        if not wants_data(method):
            yield ""
            return
        try:
            recipe, wish = asked(page, draft, selection, values)

            def work(_progress: Any, stop: Any) -> Any:
                stop.check()
                if method.get("learns"):
                    return data_views.learning_cost(recipe, page.lab.data(selection).coefficients(recipe))
                return data_views.cost_line(page.lab.data(selection).estimate(recipe, wish))

            for item in page.jobs.run(f"cost-{session_of(request)}", work):
                if isinstance(item, Done):
                    yield item.value
        except Cancelled:
            yield gr.skip()
        except Exception as error:
            yield views.note(sentence(error), "error")

    # One event for all reasons: the page then runs it again with the last values, and no older answer comes last.
    reasons = [page.data_draft.change, out["drawn"].change, out["examples"].release]
    reasons += [out[name].input for name in ("tasks", "split", "fisher")]
    gr.on(reasons, cost, source, out["cost"], trigger_mode="always_last", **DATA, **PRIVATE)


def _wire_collect(page: Page, out: dict[str, Any], source: list[Any]) -> None:
    def collect(draft: drafts.Draft, selection: dict[str, Any], request: gr.Request, *values: Any) -> Iterator[Any]:
        """Collect or learn, and merge with it. It runs on when the page is closed: what it makes is kept on disk."""
        method = page.methods[draft["method"]]
        learns = method.get("learns")
        what = "Learning:" if learns else "Collecting:"
        try:
            recipe, wish = asked(page, draft, selection, values)
            page.lab.check_sources(recipe)

            def work(progress: Any, stop: Any) -> Any:
                data = page.lab.data(selection)
                return data.learn(recipe, progress, stop) if learns else data.collect(recipe, wish, progress, stop)

            for item in page.jobs.run(job_of(request), work, outlives=True):
                if isinstance(item, Step):
                    yield busy(item, what), gr.skip()
                elif isinstance(item, Done):
                    said = data_views.learned_line(item) if learns else data_views.collected_line(item)
                    name = None if own_data(method) else item.value["name"]
                    yield said, {"of": draft["method"], "values": values, "statistics": name, "id": uuid.uuid4().hex}
        except Cancelled:
            yield views.status("Stopped. Nothing was kept."), gr.skip()
        except Exception as error:
            yield views.status(sentence(error), "error"), gr.skip()

    def use(made: dict[str, Any] | None, draft: drafts.Draft) -> Any:
        """Put what was made into the form as it is by now."""
        if not made or made["of"] != draft["method"]:
            return views.skip(2)
        return drafts.shown(chosen(draft, made["values"], made["statistics"]))

    def stop(request: gr.Request) -> Any:
        return gr.skip() if page.jobs.stop(job_of(request)) else views.status("Nothing is running.")

    out["collect"].click(collect, source, [out["status"], out["made"]], **DATA, **PRIVATE)
    out["made"].change(use, [out["made"], page.draft], [page.form, page.draft], **CHEAP, **PRIVATE)
    out["stop"].click(stop, None, out["status"], queue=False, show_progress="hidden", **PRIVATE)


def wants_data(method: Mapping[str, Any]) -> bool:
    return bool(method.get("statistics") or method.get("learns"))


def job_of(request: gr.Request) -> str:
    """The visitor's work on data: apart from their live answers, which a moved slider ends."""
    return f"data-{session_of(request)}"


def chosen(
    draft: drafts.Draft, values: tuple[Any, ...], statistics: str | None, *, own: bool | None = None
) -> drafts.Draft:
    """The draft with the panel's choice in it: exactly the tasks' experts are merged.

    ``own``: the method's data belongs to its recipe, whose parameters say which (default: where there is no set).
    """
    tasks, examples, split, _ = values
    new = drafts.copied(draft)
    for name, model in new["models"].items():
        model["on"] = name in tasks
    if own if own is not None else statistics is None:
        new["parameters"] |= {"examples": int(examples), "inputs": split}
        new["looked"] = uuid.uuid4().hex  # the recipe may be the same as before, but now it can be merged
    elif statistics is not None:
        new["statistics"] = statistics
    return new


def asked(page: Page, draft: drafts.Draft, selection: dict[str, Any], values: tuple[Any, ...]) -> tuple[Recipe, Any]:
    """The recipe that the panel's choice makes, and the wish for statistics."""
    tasks, examples, split, fisher = values
    if not tasks:
        raise MergeLabError("No task is chosen: tick at least one under “Tasks”.")
    examples = wished(examples)
    own = own_data(page.methods[draft["method"]])
    new = chosen(draft, (tasks, examples, split, fisher), None if own else draft.get("statistics"), own=own)
    from ..runs.matched import Wish

    wish = Wish(tuple(t for t in selection["experts"] if t in tasks), examples, split, fisher, int(draft["seed"] or 0))
    return page.recipe(new, selection), wish


def wished(examples: Any) -> int:
    """The number of examples, checked."""
    if isinstance(examples, bool) or not isinstance(examples, int | float) or not LOWEST <= examples <= HIGHEST:
        raise MergeLabError(f"Give {LOWEST} to {HIGHEST} examples a task, not {str(examples)[:20]}.")
    return int(examples)
