"""What a Space runs, and what `python app.py` runs: build the dashboard and serve it."""

from __future__ import annotations

from mergelab.dashboard.settings import Settings

settings = Settings.from_env()
settings.prepare()  # before gradio is imported: it reads its environment then

from mergelab.dashboard import zerogpu  # noqa: E402, F401  (before torch: a borrowed GPU must come first)
from mergelab.dashboard.app import build_app, launch  # noqa: E402

demo = build_app(settings=settings)

if __name__ == "__main__":
    launch(demo, settings)
