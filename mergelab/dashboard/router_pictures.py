"""Single pictures on the Router tab: the live prediction, weights set by hand, and a mixed batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import gradio as gr

from . import pictures, router_looks, router_views, router_work, views
from .page import CHEAP, COMPUTE, PRIVATE, Page
from .router_events import run

HINT = views.note("These are the router’s weights for the picture. Move one to set them all by hand.")
_HAND = views.note("Set by hand, used as they are: they need not sum to 1; all zero is the shared model alone.")
_NORMAL = views.note("Set by hand, divided by their sum; all zero is the shared model alone.")
_HIDDEN: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "always_last", **COMPUTE, **PRIVATE}


def wire(page: Page, out: dict[str, Any]) -> None:
    pictures.wire(page, out["inputs"], out["look_status"])
    _wire_samples(page, out)
    _wire_look(page, out)
    _wire_hands(page, out)
    _wire_batch(page, out)


def _wire_samples(page: Page, out: dict[str, Any]) -> None:
    inputs = out["inputs"]

    def gallery(task: str | None, built: Any) -> Any:
        return pictures.samples(page, task, built["selection"]) if built else (gr.skip(), gr.skip())

    def tasks(built: Any, picture: Mapping[str, Any]) -> Any:
        """The tasks of what was built, the picture's own first."""
        if not built:
            return gr.skip()
        titles, names = page.titles(built["selection"]), built["summary"]["names"]
        chosen = picture["task"] if picture["task"] in names else names[0]
        return gr.update(choices=[(titles.get(name, name), name) for name in names], value=chosen)

    def same(picture: Mapping[str, Any], built: Any) -> Any:
        return picture["task"] if built and picture["task"] in built["summary"]["names"] else gr.skip()

    shown = [inputs.gallery, out["look_status"]]
    out["built"].change(tasks, [out["built"], page.picture], inputs.task, **CHEAP, **PRIVATE).then(
        gallery, [inputs.task, out["built"]], shown, **CHEAP, **PRIVATE
    )
    inputs.task.change(gallery, [inputs.task, out["built"]], shown, **CHEAP, **PRIVATE)
    page.picture.change(same, [page.picture, out["built"]], inputs.task, **CHEAP, **PRIVATE)


def _wire_look(page: Page, out: dict[str, Any]) -> None:
    def look(built: Any, picture: dict[str, Any], head: str, hand: Any, request: gr.Request) -> Iterator[Any]:
        """The weights and the prediction of the picture that the Predict tab shows, too."""
        names = built["summary"]["names"] if built else []
        if picture["task"] not in names:
            yield views.skip(2)
            return
        hand = hand if hand and hand["of"] == built["hash"] else None

        def work(_progress: Any, _stop: Any) -> Any:
            return router_work.look(page.lab, built, picture, head, hand)

        for moving, done in run(page, request, work, 1):
            yield moving if done is None else ["", {**done.value, "of": built["hash"], "hand": hand}]

    def show(found: Any, built: Any) -> list[Any]:
        titles = page.titles(built["selection"]) if built else {}
        return [
            router_looks.card(found, titles), router_looks.sentence(found, titles),
            router_looks.weight_plot(found, titles), router_looks.class_plot(found),
            router_looks.weight_table(found, titles),
        ]  # fmt: skip

    inputs, outputs = [out["built"], page.picture, out["head"], out["hand"]], [out["look_status"], out["looked"]]
    for changed in (page.picture.change, out["built"].change, out["head"].input, out["hand"].change):
        changed(look, inputs, outputs, **_HIDDEN)
    views_ = [out[name] for name in ("card", "look_text", "look_weights", "look_classes", "look_table")]
    out["looked"].change(show, [out["looked"], out["built"]], views_, **CHEAP, **PRIVATE)


def _wire_hands(page: Page, out: dict[str, Any]) -> None:
    sliders, most = out["hands"], page.settings.max_models

    def released(built: Any, normalise: bool, *values: float) -> Any:
        if not built:
            return gr.skip(), gr.skip()
        weights = [float(v or 0) for v in values[: len(built["summary"]["names"])]]
        hand = {"of": built["hash"], "weights": weights, "normalise": bool(normalise)}
        return hand, _NORMAL if normalise else _HAND

    def divided(hand: Any, normalise: bool) -> Any:
        return ({**hand, "normalise": bool(normalise)}, _NORMAL if normalise else _HAND) if hand else (gr.skip(), HINT)

    def to_router(found: Any) -> Any:
        rows = router_views.fit(found["names"], found["weights"]["routed"], most) if found else views.skip(most)
        return [None, HINT, *rows]

    def to_zero(built: Any, normalise: bool) -> Any:
        hand, note = released(built, normalise, *[0.0] * most)
        return [hand, note, *[0.0] * most]

    def follow(found: Any) -> list[Any]:
        """Untouched sliders show the router's weights for the picture."""
        if not found or found["hand"]:
            return views.skip(most)
        return router_views.fit(found["names"], [round(w, 2) for w in found["weights"]["routed"]], most)

    def named(built: Any) -> list[Any]:
        if not built:
            return views.skip(most + 2)
        titles, names = page.titles(built["selection"]), built["summary"]["names"]
        rows = [
            gr.update(visible=i < len(names), label=titles.get(names[i], names[i]) if i < len(names) else "")
            for i in range(most)
        ]
        return [None, HINT, *rows]

    hand = [out["hand"], out["hand_note"]]
    for slider in sliders:
        slider.release(
            released, [out["built"], out["normalise"], *sliders], hand, trigger_mode="always_last", **CHEAP, **PRIVATE
        )
    out["normalise"].input(divided, [out["hand"], out["normalise"]], hand, **CHEAP, **PRIVATE)
    out["router_back"].click(to_router, out["looked"], [*hand, *sliders], **CHEAP, **PRIVATE)
    out["zero"].click(to_zero, [out["built"], out["normalise"]], [*hand, *sliders], **CHEAP, **PRIVATE)
    out["looked"].change(follow, out["looked"], sliders, **CHEAP, **PRIVATE)
    out["built"].change(named, out["built"], [*hand, *sliders], **CHEAP, **PRIVATE)


def _wire_batch(page: Page, out: dict[str, Any]) -> None:
    def draw(built: Any, head: str, seed: int, per_bin: int, request: gr.Request) -> Iterator[Any]:
        if not built:
            yield views.skip(4)
            return

        def work(progress: Any, _stop: Any) -> Any:
            progress(0, 0, "routing a mixed batch")
            return router_work.batch(page.lab, built, head, seed, int(per_bin))

        for moving, done in run(page, request, work, 3):
            if done is None:
                yield moving
            else:
                yield ["", *router_looks.batch_view(done.value, page.titles(built["selection"]))]

    inputs = [out["built"], out["head"], out["seed"], out["per_bin"]]
    outputs = [out["batch_status"], out["batch_cards"], out["batch_text"], out["batch_table"]]
    out["batch_tab"].select(draw, inputs, outputs, **_HIDDEN)
    out["per_bin"].release(draw, inputs, outputs, **_HIDDEN)
    out["another"].click(lambda seed: seed + 1, out["seed"], out["seed"], **CHEAP, **PRIVATE).then(
        draw, inputs, outputs, **_HIDDEN
    )
