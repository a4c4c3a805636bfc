"""What the Router tab says of costs: accuracy and bytes by rank, storage by tasks, seconds by mode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import gradio as gr

from . import router_views, router_work, views
from .errors import sentence
from .page import CHEAP, PRIVATE, Page
from .router_events import HIDDEN, run


def wire(page: Page, out: dict[str, Any]) -> None:
    _wire_rank(page, out)
    _wire_costs(page, out)


def _wire_rank(page: Page, out: dict[str, Any]) -> None:
    view = [out["rank_figure"], out["rank_text"], out["rank_table"], out["rank_tasks"]]

    def compute(built: Any, curve: Any, head: str, result: Any, request: gr.Request) -> Iterator[Any]:
        """The curve, once for each built model; a second visit of the tab costs nothing."""
        if not built or (curve and curve["of"] == built["hash"]):
            yield views.skip(7)
            return

        def work(progress: Any, stop: Any) -> Any:
            bench = page.lab.routed(built["selection"])
            return bench.curve(router_work.parsed(built["twin"]), progress=progress, stop=stop)

        for moving, done in run(page, request, work, 6, "Rank curve:"):
            if done is None:
                yield moving
                continue
            found = {"of": built["hash"], **done.value}
            ranks = router_views.ranks_of(found)
            own = str(built["summary"]["rank"])
            place = ranks.index(own) if own in ranks else min(3, len(ranks) - 1)
            slider = gr.update(visible=True, maximum=len(ranks) - 1, value=place, label=_rank_label(ranks, place))
            said = views.status(f"Computed once, in {done.seconds:.0f} s: the slider answers at once.")
            yield [said, found, slider, *_rank_view(found, place, head, result)]

    def move(curve: Any, place: int, head: str, result: Any) -> list[Any]:
        if not curve:
            return views.skip(5)
        label = _rank_label(router_views.ranks_of(curve), int(place))
        return [gr.update(label=label), *_rank_view(curve, int(place), head, result)]

    def forget(built: Any, curve: Any) -> Any:
        stale = curve and built and curve["of"] != built["hash"]
        note = views.note("Another model was built: open this tab again for its curve.") if stale else gr.skip()
        return note, None if stale else gr.skip()

    out["rank_tab"].select(
        compute, [out["built"], out["curve"], out["head"], out["found"]],
        [out["rank_status"], out["curve"], out["place"], *view], **HIDDEN,
    )  # fmt: skip
    moved = [out["curve"], out["place"], out["head"], out["found"]]
    out["place"].release(move, moved, [out["place"], *view], trigger_mode="always_last", **CHEAP, **PRIVATE)
    out["head"].input(move, moved, [out["place"], *view], **CHEAP, **PRIVATE)
    out["built"].change(forget, [out["built"], out["curve"]], [out["rank_status"], out["curve"]], **CHEAP, **PRIVATE)


def _rank_label(ranks: list[str], place: int) -> str:
    return "Rank: nothing left out" if ranks[place] == router_views.FULL else f"Rank: {ranks[place]}"


def _rank_view(curve: Mapping[str, Any], place: int, head: str, result: Mapping[str, Any] | None) -> list[Any]:
    result = result or {}
    told = {"experts, told the task": (result.get("experts") or {}).get("seen", {}).get("accuracy")}
    references = {name: value for name, value in told.items() if value is not None}
    return router_views.rank_view(curve, place, head, result.get("titles", {}), references)


def _wire_costs(page: Page, out: dict[str, Any]) -> None:
    def storage(built: Any) -> list[Any]:
        if not built:
            return views.skip(3)
        try:
            found = page.lab.routed(built["selection"]).storage(router_work.parsed(built["twin"]))
        except Exception as error:
            return [gr.skip(), views.note(sentence(error), "error"), gr.skip()]
        return router_views.storage_view(found)

    def time_it(built: Any, request: gr.Request) -> Iterator[Any]:
        if not built:
            yield views.skip(4)
            return

        def work(progress: Any, stop: Any) -> Any:
            bench = page.lab.routed(built["selection"])
            return bench.latency(router_work.parsed(built["twin"]), progress=progress, stop=stop)

        for moving, done in run(page, request, work, 3, "Timing:"):
            if done is None:
                yield moving
            else:
                yield [views.status("Measured here, now; other work on this machine makes it slower."),
                       *router_views.latency_view(done.value)]  # fmt: skip

    out["built"].change(
        storage, out["built"], [out["storage"], out["storage_text"], out["storage_table"]], **CHEAP, **PRIVATE
    )
    out["time"].click(
        time_it, out["built"], [out["time_status"], out["latency"], out["latency_text"], out["latency_table"]],
        **HIDDEN,
    )  # fmt: skip
