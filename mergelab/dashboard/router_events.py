"""What happens on the Router tab: building and measuring."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gradio as gr

from ..errors import Cancelled, MergeLabError
from ..recipe import Recipe
from . import router_views, router_work, views
from .errors import sentence
from .jobs import Done, Step, Superseded
from .page import CHEAP, COMPUTE, PRIVATE, Page, busy, session_of
from .work import label

HIDDEN: dict[str, Any] = {"show_progress": "hidden", **COMPUTE, **PRIVATE}
_OPTIONS = ("preset", "policy", "rank", "rank_ratio", "energy", "router", "temperature", "top_k", "threshold")


def wire(page: Page, out: dict[str, Any], results: dict[str, Any]) -> None:
    _wire_panel(page, out)
    _wire_build(page, out)
    _wire_measured(page, out, results)


def shared_words(page: Page, draft: Mapping[str, Any], selection: Mapping[str, Any]) -> str:
    """The shared model in words: what the Merge tab shows now."""
    try:
        recipe = page.recipe(dict(draft), selection)
    except MergeLabError as error:
        return views.note(str(error), "error")
    text = label(recipe, page.methods[recipe.merge_method], len(selection["experts"]))
    return (
        f'<p class="ml-lead"><b>Shared model:</b> {html.escape(text)}, {len(recipe.models)} experts '
        '<small class="ml-cost">(the recipe on the Merge tab)</small></p>'
    )


def run(
    page: Page, request: gr.Request, work: Callable[[Any, Any], Any], keep: int, what: str = ""
) -> Iterator[tuple[list[Any], Any]]:
    """Run a job; yields (outputs that only move the status line, None) and at last ([], its value)."""
    try:
        for item in page.jobs.run(session_of(request), work):
            if isinstance(item, Step):
                yield [busy(item, what), *views.skip(keep)], None
            elif isinstance(item, Done):
                yield [], item
    except Superseded:
        yield views.skip(keep + 1), None
    except Cancelled:
        yield [views.status("Stopped."), *views.skip(keep)], None
    except Exception as error:
        yield [views.status(sentence(error), "error"), *views.skip(keep)], None


def _options(values: tuple[Any, ...]) -> router_work.Options:
    return dict(zip(_OPTIONS, values, strict=True))


def _recipe(page: Page, draft: dict[str, Any], selection: dict[str, Any]) -> Recipe:
    recipe = page.recipe(draft, selection)
    page.lab.check_sources(recipe)
    return recipe


def _wire_panel(page: Page, out: dict[str, Any]) -> None:
    fields = [out[name] for name in _OPTIONS]

    def describe(draft: dict[str, Any], selection: dict[str, Any], *values: Any) -> Any:
        """The shared model in words, and what a build will cost."""
        try:
            twin = router_work.twin_of(page.recipe(draft, selection), _options(values))
            cost = router_views.cost_line(page.lab.routed(selection).estimate(router_work.parsed(twin)))
        except Exception as error:
            cost = views.note(sentence(error), "error")
        return shared_words(page, draft, selection), cost

    def choose(name: str) -> Any:
        values = router_work.preset_options(name)
        sizes = [gr.update(value=values[p], visible=p == values["policy"]) for p in router_work.POLICIES]
        shown = gr.update(info=values["text"])
        return [shown, values["policy"], *sizes, *(values[n] for n in _OPTIONS[5:]), values["head"]]

    def show(policy: str) -> Any:
        return [gr.update(visible=p == policy) for p in router_work.POLICIES]

    told = [out["shared"], out["cost"]]
    source = [page.draft, page.selection, *fields]
    page.first_visit.append([(describe, source, told)])
    page.draft.change(describe, source, told, trigger_mode="always_last", **CHEAP, **PRIVATE)
    out["preset"].input(choose, out["preset"], [*fields, out["head"]], **CHEAP, **PRIVATE).then(
        describe, source, told, **CHEAP, **PRIVATE
    )
    out["policy"].input(show, out["policy"], [out[p] for p in router_work.POLICIES], **CHEAP, **PRIVATE).then(
        describe, source, told, **CHEAP, **PRIVATE
    )
    for name in ("rank", "rank_ratio", "energy"):
        out[name].release(describe, source, told, **CHEAP, **PRIVATE)


def _wire_build(page: Page, out: dict[str, Any]) -> None:
    fields = [out[name] for name in _OPTIONS]

    def make(
        draft: dict[str, Any], selection: dict[str, Any], head: str, mode: str, request: gr.Request, *values: Any
    ) -> Iterator[Any]:
        """Build, and measure on a few pictures a task."""
        page.jobs.stop(session_of(request), superseded=True)
        options = _options(values)
        try:
            recipe = _recipe(page, draft, selection)
            words = label(recipe, page.methods[recipe.merge_method], len(selection["experts"]))
        except Exception as error:
            yield [views.status(sentence(error), "error"), *views.skip(5)]
            return

        def work(progress: Any, stop: Any) -> Any:
            built = router_work.build(page.lab, selection, recipe, options, words, progress=progress, stop=stop)
            few = page.settings.per_task
            found = router_work.measure(page.lab, built, head, mode, few, progress=progress, stop=stop)
            return built, found

        for moving, done in run(page, request, work, 5, "Building:"):
            if done is None:
                yield moving
                continue
            built, found = done.value
            yield [router_views.built_line(built), router_views.badges(built, found["evaluation"]), built, found,
                   gr.update(visible=True), ""]  # fmt: skip

    def stop(request: gr.Request) -> Any:
        return gr.skip() if page.jobs.stop(session_of(request)) else views.status("Nothing is running.")

    out["build"].click(
        make, [page.draft, page.selection, out["head"], out["mode"], *fields],
        [out["status"], out["badges"], out["built"], out["found"], out["after"], out["intro"]], **HIDDEN,
    )  # fmt: skip
    out["stop"].click(stop, None, out["status"], queue=False, show_progress="hidden", **PRIVATE)


def _wire_measured(page: Page, out: dict[str, Any], results: dict[str, Any]) -> None:
    shown = ["sentence", "table", "weights", "weights_text", "weights_table", "confusion", "confusion_text",
             "confusion_table", "split"]  # fmt: skip

    def again(per_task: int | None, built: Any, head: str, mode: str, request: gr.Request) -> Iterator[Any]:
        if not built:
            yield views.skip(3)
            return

        def work(progress: Any, stop: Any) -> Any:
            return router_work.measure(page.lab, built, head, mode, per_task, progress=progress, stop=stop)

        for moving, done in run(page, request, work, 2, "Measuring:"):
            if done is None:
                yield moving
            else:
                found = done.value["evaluation"]
                said = views.status(f"{done.value['label']}: measured in {done.seconds:.1f} s. {_why(found)}")
                yield [said, router_views.badges(built, found), done.value]

    def quick(built: Any, head: str, mode: str, request: gr.Request) -> Iterator[Any]:
        yield from again(page.settings.per_task, built, head, mode, request)

    def whole(built: Any, head: str, mode: str, request: gr.Request) -> Iterator[Any]:
        yield from again(None, built, head, mode, request)

    def render(result: views.Result | None) -> list[Any]:
        if not result:
            return views.skip(len(shown))
        found, titles = result["evaluation"], result["titles"]
        return [
            router_views.result_sentence(result), router_views.result_table(result),
            *router_views.shares(found, "weights", titles), *router_views.shares(found, "confusion", titles),
            router_views.split_line(found),
        ]  # fmt: skip

    def compare(result: views.Result | None, kept: list[views.Result]) -> Any:
        if not result:
            return kept, gr.skip(), views.note("There is no result to compare yet.", "error")
        if any(other["id"] == result["id"] for other in kept):
            return kept, gr.skip(), views.note("This result is on the Results tab already.")
        names = {other["label"] for other in kept}
        own = next(name for name in _numbered(result["label"]) if name not in names)
        plain = {key: value for key, value in result.items() if key != "static"}
        kept = [*kept, {**plain, "label": own}][-page.settings.max_kept :]
        labels = [other["label"] for other in kept]
        return (
            kept,
            gr.update(choices=labels, value=labels, visible=True),
            views.note(f"“{own}” is on the Results tab."),
        )

    inputs, outputs = [out["built"], out["head"], out["mode"]], [out["status"], out["badges"], out["found"]]
    for field in ("head", "mode"):
        out[field].input(quick, inputs, outputs, trigger_mode="always_last", **HIDDEN)
    out["whole"].click(whole, inputs, outputs, **HIDDEN)
    out["found"].change(render, out["found"], [out[name] for name in shown], **CHEAP, **PRIVATE)
    out["show"].click(
        compare, [out["found"], page.kept], [page.kept, results["shown"], out["shown"]], **CHEAP, **PRIVATE
    )


def _why(found: Mapping[str, Any]) -> str:
    why = str(found.get("why") or "")
    return f"Mode {found['mode']}: {why}" if why and why != "asked for" else f"Mode {found['mode']}, as asked."


def _numbered(text: str) -> Iterator[str]:
    yield text
    number = 2
    while True:
        yield f"{text} ({number})"
        number += 1
