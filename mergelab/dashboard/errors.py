"""Errors that reach a visitor: a sentence, never a stack trace."""

from __future__ import annotations

import html
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from ..errors import Cancelled, MergeLabError

log = logging.getLogger("mergelab.dashboard")
UNEXPECTED = "Something went wrong in MergeLab itself. Nothing was lost; the server's log says more. Please try again."


def sentence(error: BaseException) -> str:
    """What to tell a visitor; an error that is not ours goes to the log and gives a plain sentence."""
    if isinstance(error, MergeLabError):
        return str(error)
    if isinstance(error, gr.Error):
        return str(error.message)
    log.error("unexpected error in a handler", exc_info=error)
    return UNEXPECTED


@contextmanager
def spoken() -> Iterator[None]:
    """Turn any exception into a ``gr.Error`` whose message is a sentence."""
    try:
        yield
    except Exception as error:
        title = "Stopped" if isinstance(error, Cancelled) else "That did not work"
        raise gr.Error(html.escape(sentence(error), quote=False), print_exception=False, title=title) from None
