"""The verb app."""

from __future__ import annotations

import os
from typing import Any

from .common import Verb


def add(verb: Verb) -> None:
    """Declare the verbs."""
    app = verb("app", _app, "Start the dashboard (the same as `python app.py`).")
    app.add_argument("--port", type=int, metavar="N", help="default: 7860, or GRADIO_SERVER_PORT")


def _app(arguments: Any) -> int:
    if arguments.port:
        os.environ["GRADIO_SERVER_PORT"] = str(arguments.port)
    from ..dashboard.settings import Settings

    settings = Settings.from_env()
    settings.prepare()  # before gradio is imported: it reads its environment then
    from ..dashboard.app import build_app, launch

    launch(build_app(settings=settings), settings)
    return 0
