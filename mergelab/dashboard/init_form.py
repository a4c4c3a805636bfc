"""What a matched method starts from, and which of a method's parameters are worth showing first."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import gradio as gr

from . import controls, drafts
from .errors import spoken
from .page import CHEAP, PRIVATE, Page, session_of

#: Parameters that the Data panel sets.
ON_PANEL = ("examples", "inputs")
#: A method that needs data and has more parameters than this shows the first ones, and the others on demand.
_FEW = 5
_FIRST = ("objective", "iterations", "lambda", "per", "split", "steps", "rate", "off_diagonal")
#: The coefficient that a start has on the form.
_MAIN = ("lambda", "t")


def own_data(method: Mapping[str, Any]) -> bool:
    """Whether its data belongs to one recipe alone, whose parameters say which: learned, or through merged layers."""
    return bool(method.get("learns") or method.get("collects"))


def arranged(method: Mapping[str, Any], form: drafts.Draft) -> tuple[list[Any], list[Any]]:
    """The parameters shown at once and those behind a click, without what is shown elsewhere."""
    elsewhere = ("weight", *form["split"], *(ON_PANEL if own_data(method) else ()))
    shown = [p for p in method["parameters"] if p["name"] not in elsewhere]
    if len(shown) <= _FEW or method["kind"] == "tensor":
        return sorted(shown, key=lambda p: (p["type"] == "choice", p["type"] == "bool", p["name"] != "lambda")), []
    first = [p for p in shown if p["name"] in _FIRST][:4]
    return first, [p for p in shown if p not in first]


def choices(page: Page, method: str, count: int) -> list[tuple[str, str]]:
    """The average, the base, and every method that merges ``count`` experts without learning, but itself."""
    found = [("Weight average", "average"), ("The base", "base")]
    for title, name in controls.choices(page.methods):
        other = page.methods[name]
        most = other["models"]["max"]
        if name not in (method, "linear", "mats") and not own_data(other) and (most is None or most >= count):
            found.append((title, name))
    return found


def main_of(page: Page, name: str) -> Mapping[str, Any] | None:
    """The declaration of a start's main coefficient, if it has one."""
    if name not in page.methods:
        return None
    return next((p for key in _MAIN for p in page.methods[name]["parameters"] if p["name"] == key), None)


def start_of(page: Page, name: str, value: float | None, selection: Mapping[str, Any]) -> Any:
    """A recipe's ``init``: ``value`` for its main coefficient, else what the zoo tuned, else the default."""
    if name == "average":
        return None
    known = dict(selection.get("tuned", {}).get(name, {}))
    main = main_of(page, name)
    if main is None:
        return {"merge_method": name, "parameters": known} if known else name
    known[main["name"]] = known.get(main["name"], main["default"]) if value is None else value
    return {"merge_method": name, "parameters": known}


def build(page: Page, form: drafts.Draft, selection: dict[str, Any]) -> None:
    """The picker and its coefficient; runs inside ``gr.render``."""
    init = form.get("init")
    if isinstance(init, Mapping) and "model" in init:  # of an opened recipe: it stays as it is
        gr.HTML(f'<p class="ml-cost">Starts from {html.escape(str(init["model"]))}.</p>')
        return
    name = "average" if init is None else init if isinstance(init, str) else str(init["merge_method"])
    on = sum(model["on"] for model in form["models"].values())
    known = choices(page, form["method"], on)
    if name not in {value for _, value in known}:
        known.append((name, name))
    picker = gr.Dropdown(
        known, value=name, label="Start from", interactive=True, filterable=False, elem_id="init",
        info="The merge that the method moves from; what its data does not see stays as it is there.",
    )  # fmt: skip
    main = main_of(page, name)
    slider = None
    if main is not None:
        given = init.get("parameters", {}) if isinstance(init, Mapping) else {}
        slider = controls.control(
            main, given.get(main["name"], main["default"]), "init-main", label=f"{main['name']} of the start"
        )

    def choose(name: str, draft: drafts.Draft, request: gr.Request) -> Any:
        with spoken():
            page.jobs.stop(session_of(request), superseded=True)
            return drafts.shown({**drafts.copied(draft), "init": start_of(page, name, None, selection)})

    def move(value: float, draft: drafts.Draft, request: gr.Request) -> Any:
        with spoken():
            new = {**drafts.copied(draft), "init": start_of(page, name, value, selection)}
            if new == draft:
                return gr.skip()
            page.jobs.stop(session_of(request), superseded=True)
            return new

    picker.input(choose, [picker, page.draft], [page.form, page.draft], **CHEAP, **PRIVATE)
    if slider is not None:
        slider.release(move, [slider, page.draft], page.draft, trigger_mode="always_last", **CHEAP, **PRIVATE)
