"""A real browser on the real page: `python app.py` in a process of its own, Chromium without a screen."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
LOCAL = ("http://127.0.0.1:", "http://localhost:", "data:", "blob:", "about:")


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(item.fspath).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.browser)
            if CHROMIUM is None:
                item.add_marker(pytest.mark.skip(reason="no Chromium on this machine"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def page_url(root, tmp_path_factory):
    """The address of `python app.py` on the starter zoo."""
    port = free_port()
    env = {k: v for k, v in os.environ.items() if not k.endswith("_PROXY")} | {
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(tmp_path_factory.mktemp("gradio")),
        "MERGELAB_HOME": str(tmp_path_factory.mktemp("home")),
        "HF_HUB_OFFLINE": "1",
        "no_proxy": "127.0.0.1,localhost",
    }
    log = tmp_path_factory.mktemp("log") / "app.log"
    with log.open("w") as out:
        process = subprocess.Popen([sys.executable, "app.py"], cwd=root, env=env, stdout=out, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(url, process, log)
        yield url
    finally:
        process.terminate()
        process.wait(20)
    text = log.read_text()
    assert "Traceback" not in text, text[-4000:]


def _wait(url: str, process: subprocess.Popen, log: Path) -> None:
    for _ in range(600):
        if process.poll() is not None:
            pytest.fail(f"app.py ended: {log.read_text()[-4000:]}")
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"app.py did not answer: {log.read_text()[-4000:]}")


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield found
        found.close()


@pytest.fixture
def open_page(browser, page_url):
    """Open the page at a size and in a theme. Every request off this machine is blocked, counted, and fails the test;
    so does any error in the page."""
    contexts, away, broken = [], [], []

    def guard(route):
        if route.request.url.startswith(LOCAL):
            route.continue_()
        else:
            away.append(route.request.url)
            route.abort()

    def open_one(width: int = 1280, height: int = 800, theme: str = "light"):
        context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
        contexts.append(context)
        context.route("**/*", guard)
        page = context.new_page()
        page.on("pageerror", lambda error: broken.append(str(error)))
        page.goto(f"{page_url}/?__theme={theme}")
        page.wait_for_selector("#radar .scatterlayer .trace", timeout=30_000)
        page.wait_for_selector("#live-plot .js-plotly-plot .bars", timeout=30_000)
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert away == [], "the page asked for something off this machine"
    assert broken == [], "the page's script failed"


@pytest.fixture(scope="session")
def shots(tmp_path_factory) -> Path:
    """Where screenshots go: MERGELAB_SCREENSHOTS, else a temporary folder."""
    folder = os.environ.get("MERGELAB_SCREENSHOTS")
    path = Path(folder) if folder else tmp_path_factory.mktemp("screenshots")
    path.mkdir(parents=True, exist_ok=True)
    return path
