"""A live page over a fake lab: one server a session, on a free port of this machine."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def settings(tmp_path_factory):
    from mergelab.dashboard.settings import Settings

    found = Settings(server_port=free_port(), temp=tmp_path_factory.mktemp("gradio"))
    before = os.environ.get("GRADIO_TEMP_DIR")
    found.prepare()
    yield found
    if before is None:
        os.environ.pop("GRADIO_TEMP_DIR", None)
    else:
        os.environ["GRADIO_TEMP_DIR"] = before


@pytest.fixture(scope="session")
def lab(settings):
    from dashboard.fake_lab import FakeLab

    return FakeLab(settings)


@pytest.fixture(scope="session")
def demo(lab, settings):
    from mergelab.dashboard.app import build_app

    return build_app(lab, settings)


@pytest.fixture(scope="session")
def url(demo, settings):
    from mergelab.dashboard.app import launch_options

    demo.launch(**launch_options(settings), prevent_thread_lock=True)
    yield f"http://127.0.0.1:{settings.server_port}"
    demo.close(verbose=False)


@pytest.fixture
def client(url):
    from gradio_client import Client

    return Client(url, verbose=False)


@pytest.fixture
def picture_file(tmp_path) -> Path:
    from PIL import Image

    path = tmp_path / "picture.png"
    Image.new("RGB", (40, 20), (200, 10, 10)).save(path)
    return path
