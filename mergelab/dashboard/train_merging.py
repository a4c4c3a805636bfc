"""The Train tab's controls of the method that merges a round, made from its declaration as on the Merge tab."""

from __future__ import annotations

from typing import Any

import gradio as gr

from . import controls
from .page import CHEAP, PRIVATE, RENDER, Page

#: A method with more parameters than this shows its numbers, and its choices on demand.
_FEW = 3


def build(page: Page, out: dict[str, Any]) -> None:
    """Controls below ``out["method"]``; what a person changes is in the state ``out["parameters"]``, which is empty
    where everything stands at its default."""

    with gr.Column(elem_id="train-parameters", min_width=0):

        @gr.render(inputs=out["method"], **RENDER)
        def parameters(method: str) -> None:
            _controls(page, out, method)

    out["method"].input(lambda: {}, None, out["parameters"], **CHEAP, **PRIVATE)


def shown(page: Page, method: str) -> list[Any]:
    """The parameters that are one value for all experts, numbers first; the mean has none."""
    found = [p for p in page.methods.get(method, {}).get("parameters", ()) if p["name"] != "weight"]
    return sorted(found, key=lambda p: (p["type"] in ("choice", "bool"), p["name"] != "lambda"))


def _controls(page: Page, out: dict[str, Any], method: str) -> None:
    """Runs inside ``gr.render``."""
    first = shown(page, method)
    more: list[Any] = []
    if len(first) > _FEW:
        more = [p for p in first if p["type"] in ("choice", "bool")]
        first = [p for p in first if p not in more]
    for parameter in first:
        _control(out, parameter)
    if more:
        with gr.Accordion(f"More parameters ({len(more)})", open=False, elem_id="train-more-parameters"):
            for parameter in more:
                _control(out, parameter)


def _control(out: dict[str, Any], parameter: Any) -> None:
    name, default = parameter["name"], parameter["default"]
    component = controls.control(parameter, default, f"train-parameter-{name}")

    def collect(value: Any, given: dict[str, Any]) -> dict[str, Any]:
        others = {key: known for key, known in given.items() if key != name}
        return others if value is None or value == default else {**others, name: value}

    controls.listen(component)(
        collect, [component, out["parameters"]], out["parameters"], trigger_mode="always_last", **CHEAP, **PRIVATE
    )
