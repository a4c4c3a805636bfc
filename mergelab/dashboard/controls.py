"""Controls made from a method's declaration."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import gradio as gr

#: Names of coefficients that mean more to a newcomer than their letter.
_LABELS = {
    "lambda": "λ, the coefficient of the merge",
    "weight": "Weight",
    "t": "t, from the first to the second model",
}
LATEX: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "$", "right": "$", "display": False},
]


def choices(methods: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Methods for a dropdown, those of one group together."""
    ordered = sorted(methods.values(), key=lambda m: (_ORDER.get(m["group"], 99), m["group"], m["title"]))
    return [(f"{m['title']} ({m['group']})", m["name"]) for m in ordered]


_DATA = {
    "none": "needs no data", "unlabelled": "needs unlabelled images", "labelled": "needs labelled images",
}  # fmt: skip
_ORDER = {
    "task vectors": 0, "averages": 1, "sparse task vectors": 2, "spectral": 3, "matched": 4, "learned coefficients": 5,
}  # fmt: skip


def label_of(name: str) -> str:
    return _LABELS.get(name, name.replace("_", " ").capitalize())


def control(
    parameter: Mapping[str, Any], value: Any, elem_id: str, *, label: str | None = None, bare: bool = False
) -> Any:
    """A slider, a number, a checkbox or a choice for one declared parameter, showing ``value``."""
    text = label or label_of(parameter["name"])
    shared: dict[str, Any] = {"label": text, "elem_id": elem_id, "interactive": True}
    if not bare:
        shared["info"] = parameter["help"]
    else:
        shared["container"] = False
    if parameter["type"] == "bool":
        return gr.Checkbox(value=bool(value), **shared)
    if parameter["type"] == "choice":
        return gr.Dropdown(list(parameter["range"]), value=value, filterable=False, **shared)
    if not parameter.get("slider") and not parameter.get("range"):
        return gr.Number(value=value, precision=0 if parameter["type"] == "int" else None, **shared)
    low, high = parameter.get("slider") or parameter["range"]
    step = 1 if parameter["type"] == "int" else parameter.get("step") or round((high - low) / 100, 6)
    if bare:
        shared["show_label"] = False
    return gr.Slider(min(low, value), max(high, value), value=value, step=step, **shared)


def code(value: str, language: Any, elem_id: str) -> gr.Code:
    """Text to be copied, as it stands."""
    return gr.Code(
        value, language=language, interactive=False, lines=3, max_lines=16, show_label=False, elem_id=elem_id,
        buttons=["copy"], wrap_lines=True, show_line_numbers=False, container=False,
    )  # fmt: skip


def listen(component: Any) -> Any:
    """The event that says that a person has chosen a value: a slider's release, anything else's input."""
    return component.release if isinstance(component, gr.Slider) else component.input


def data_badge(method: Mapping[str, Any], *, transductive: bool = False) -> str:
    """What data the method needs, as a badge. ``transductive``: it looks at the pictures that results are measured
    on."""
    text = _badge(_DATA.get(method["data"], f"needs {method['data']}"))
    return text + (_badge("transductive: looks at test images", " ml-loud") if transductive else "")


def _badge(text: str, kind: str = "") -> str:
    return f'<span class="ml-badge{kind}">{html.escape(text)}</span>'


def badges(method: Mapping[str, Any]) -> str:
    """What the method needs, at a glance."""
    marks = [{"required": "needs the base", "optional": "base optional", "unused": "needs no base"}[method["base"]]]
    low, high = method["models"]["min"], method["models"]["max"]
    if high is not None:
        marks.append(f"{low} models" if low == high else f"{low} to {high} models")
    elif low > 1:
        marks.append(f"at least {low} models")
    if method.get("random"):
        marks.append("random: has a seed")
    return data_badge(method) + "".join(map(_badge, marks))


def about(method: Mapping[str, Any]) -> str:
    """Formula, explanation and paper, as Markdown with LaTeX that is set without a network."""
    paper, _, url = method["paper"].rpartition(", ")
    source = f"[{paper}]({url})" if url.startswith("http") else method["paper"]
    return f"$$ {method['formula']} $$\n\n{method.get('doc') or method['summary']}\n\nPaper: {source}"
