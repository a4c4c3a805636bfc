"""A table of components that can be looked through while it grows.

Gradio keeps one for each visitor. A part of the page that is drawn anew adds to it in a thread of its own while another
event goes through it, and Python then ends that event with "dictionary changed size during iteration".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr


class Steady(dict[int, Any]):
    """A dictionary whose views are taken at once, so that they stay as they are."""

    def values(self) -> list[Any]:  # type: ignore[override]
        return list(super().values())

    def items(self) -> list[tuple[int, Any]]:  # type: ignore[override]
        return list(super().items())

    def keys(self) -> list[int]:  # type: ignore[override]
        return list(super().keys())

    def __iter__(self) -> Iterator[int]:
        return iter(list(super().keys()))

    def __copy__(self) -> Steady:
        """What a visitor gets."""
        return Steady(super().copy())


def steady(demo: gr.Blocks) -> None:
    """Give every visitor of ``demo`` such a table; call it when the page is built."""
    demo.default_config.blocks = Steady(demo.default_config.blocks)
