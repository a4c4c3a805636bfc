"""What happens on the Merge tab: live measuring, refining, opening a recipe, making a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from ..errors import Cancelled, DataNeededError, MergeLabError
from . import drafts, recipes, views
from .errors import sentence
from .jobs import Done, Step, Superseded
from .page import CHEAP, COMPUTE, PRIVATE, REFINE, Page, busy, session_of

#: Heights in pixels with which radar, table and prediction fit one screen.
RADAR, BARS = 340, 215


def wire(page: Page, out: dict[str, Any], first: dict[str, Any]) -> None:
    view = [out["status"], out["radar"], out["table"], out["sentence"], page.result, page.prediction]

    def quick(
        draft: drafts.Draft,
        selection: dict[str, Any],
        picture: dict[str, Any],
        old: views.Result | None,
        request: gr.Request,
    ) -> Iterator[Any]:
        """Merge in memory and measure a subset; the status line tells how far it is."""
        yield from _show(page, draft, selection, picture, old, page.settings.per_task, request)

    def refine(
        draft: drafts.Draft, selection: dict[str, Any], result: views.Result | None, request: gr.Request
    ) -> Iterator[Any]:
        """Measure what is shown on the whole test sets; ends at once when something newer is on its way."""
        yield views.skip(6)  # a generator that yields nothing would clear its outputs
        if not result or result.get("evaluation") is None or result["per_task"] is None:
            return
        try:
            current = page.recipe(draft, selection).hash
        except MergeLabError:
            return
        if current == result["hash"]:
            yield from _show(page, draft, selection, None, result, None, request)

    def recipe_forms(draft: drafts.Draft, selection: dict[str, Any]) -> list[Any]:
        try:
            recipe = page.recipe(draft, selection)
        except MergeLabError as error:
            return [gr.skip(), gr.skip(), gr.skip(), gr.skip(), views.note(str(error), "error")]
        return [*recipes.forms(recipe).values(), recipes.files(recipe)]

    def stop(request: gr.Request) -> str:
        count = page.jobs.stop(session_of(request))
        return gr.skip() if count else views.status("Nothing is running.")

    if first["result"] is None:  # nothing was shipped: measure when a visitor arrives
        page.first_visit.append(
            [
                (quick, [page.draft, page.selection, page.picture, page.result], view),
                (refine, [page.draft, page.selection, page.result], view),
            ]
        )
    page.draft.change(recipe_forms, [page.draft, page.selection], out["forms"], **CHEAP, **PRIVATE)
    page.draft.change(
        quick, [page.draft, page.selection, page.picture, page.result], view, trigger_mode="always_last",
        show_progress="hidden", **COMPUTE, **PRIVATE,
    ).then(
        refine, [page.draft, page.selection, page.result], view, show_progress="hidden", trigger_mode="always_last",
        **REFINE, **PRIVATE,
    )  # fmt: skip
    out["stop"].click(stop, None, out["status"], queue=False, show_progress="hidden", **PRIVATE)
    _wire_prediction(page, out)
    _wire_files(page, out)


def _show(  # noqa: PLR0917
    page: Page,
    draft: drafts.Draft,
    selection: dict[str, Any],
    picture: dict[str, Any] | None,
    old: views.Result | None,
    per_task: int | None,
    request: gr.Request,
) -> Iterator[Any]:
    """Run the job and yield outputs for the view: status while it runs, everything when it is done."""
    what = "" if per_task is not None else "Refining on the whole test sets:"
    try:
        for item in page.live(session_of(request), draft, selection, picture, per_task=per_task):
            if isinstance(item, Step):
                first = views.result_status(old) if per_task is None else ""
                yield [first + busy(item, what), *views.skip(5)]
            elif isinstance(item, Done):
                result, prediction = item.value
                extra = "Refining …" if per_task is not None and result["evaluation"] else ""
                yield [
                    views.result_status(result, extra), views.radar(result, height=RADAR), views.main_table(result),
                    views.sentence(result), result, prediction if prediction else gr.skip(),
                ]  # fmt: skip
    except Superseded:
        yield views.skip(6)
    except Cancelled:
        yield [views.result_status(old, "Stopped; these numbers are the last ones that were measured."), *views.skip(5)]
    except DataNeededError as error:
        yield [views.status(str(error), "wait"), *views.skip(5)]
    except Exception as error:
        yield [views.status(sentence(error), "error"), *views.skip(5)]


def _wire_prediction(page: Page, out: dict[str, Any]) -> None:
    def pick(task: str) -> dict[str, Any]:
        return {"task": task, "place": 0}

    def next_one(task: str, picture: dict[str, Any]) -> dict[str, Any]:
        same = picture.get("task") == task and picture.get("pixels") is None
        return {"task": task, "place": picture.get("place", 0) + 1 if same else 0}

    out["task"].input(pick, out["task"], page.picture, **CHEAP, **PRIVATE)
    out["another"].click(next_one, [out["task"], page.picture], page.picture, **CHEAP, **PRIVATE)


def _wire_files(page: Page, out: dict[str, Any]) -> None:
    def open_recipe(pasted: str, path: str | None, selection: dict[str, Any], request: gr.Request) -> Any:
        """Show a recipe that was pasted or uploaded: in the form when it merges these models, else with its own."""
        try:
            text = Path(path).read_bytes()[: 64 * 1024 + 1].decode("utf-8", "replace") if path else (pasted or "")
            if not text.strip():
                raise MergeLabError("There is no recipe yet: paste one, or choose a file.")
            recipe = recipes.read(text)
            page.lab.check_sources(recipe)
            if recipe.merge_method not in page.methods:
                from ..methods import get

                get(recipe.merge_method)
            method = page.methods[recipe.merge_method]
            drafts.validate(recipe)
            draft = drafts.from_recipe(recipe, method, selection)
            if draft is None:
                selection = drafts.selection_of(recipe)
                draft = drafts.from_recipe(recipe, method, selection)
            assert draft is not None, "a recipe fits the selection made from it"
            page.jobs.stop(session_of(request), superseded=True)
            said = views.note(f"Opened: {recipe.title or method['title']}, {len(recipe.models)} models.")
            return said, selection, *drafts.shown(draft)
        except Exception as error:
            return views.note(sentence(error), "error"), *views.skip(3)

    def make(draft: drafts.Draft, selection: dict[str, Any], request: gr.Request) -> Iterator[Any]:
        """Write the merged checkpoint and offer it."""
        try:
            recipe = page.recipe(draft, selection)
            page.lab.check_sources(recipe)
            page.lab.check_size(recipe)

            def work(progress: Any, stop: Any) -> Any:
                return page.lab.open(selection).export(recipe, folder=page.settings.temp, progress=progress, stop=stop)

            for item in page.jobs.run(session_of(request), work):
                if isinstance(item, Step):
                    yield busy(item, "Merging:"), gr.update(visible=False)
                elif isinstance(item, Done):
                    size = item.value.stat().st_size / 1e6
                    said = views.status(f"Ready: {item.value.name}, {size:.0f} MB, made in {item.seconds:.0f} s.")
                    yield said, gr.update(value=str(item.value), visible=True, label=f"Download {item.value.name}")
        except Cancelled:
            yield views.status("Stopped. Nothing was written."), gr.update(visible=False)
        except Exception as error:
            yield views.status(sentence(error), "error"), gr.update(visible=False)

    out["open"].click(
        open_recipe, [out["pasted"], out["upload"], page.selection],
        [out["message"], page.selection, page.form, page.draft], **CHEAP, **PRIVATE,
    )  # fmt: skip
    out["make"].click(
        make, [page.draft, page.selection], [out["making"], out["ready"]], show_progress="hidden", **COMPUTE, **PRIVATE
    )
