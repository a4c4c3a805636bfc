"""How quick the lab feels, measured on the real page: ``python tests/benchmarks/lab_speed.py [--rounds 9]``.

Starts ``python app.py``, opens it in a headless Chromium and measures what the project promises: import, start, first
screen, a released slider, the refined result. Figures are seconds, medians beside the smallest and largest; times
depend on the machine, so a plain forward pass over the same pictures is timed in the same run and given as a yardstick.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


def import_seconds() -> float:
    code = "import time; t = time.perf_counter(); import mergelab; print(time.perf_counter() - t)"
    return float(
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    )


def forward_seconds(rounds: int) -> list[float]:
    """The yardstick: the base's forward pass over 40 pictures of each of the eight seen tasks, alone on the machine."""
    code = f"""
import json, time, torch
from mergelab.models import build
from mergelab.tasks import load_suite, subset
model = build("zoo:starter/base", device="cpu")
pictures = torch.cat([subset(task, "test", 40)[0] for task in load_suite("starter") if task.seen])
times = []
for _ in range({rounds} + 1):
    started = time.perf_counter(); model.encode(pictures); times.append(time.perf_counter() - started)
print(json.dumps(times[1:]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


class Server:
    """``python app.py`` on a free port, until the block ends."""

    def __enter__(self) -> Server:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.home = tempfile.mkdtemp(prefix="mergelab-bench-")
        settings = {"GRADIO_SERVER_PORT": str(self.port), "MERGELAB_HOME": self.home, "PYTHONUNBUFFERED": "1"}
        self.started = time.perf_counter()
        self.log = open(Path(self.home) / "app.log", "w")
        self.process = subprocess.Popen(
            [sys.executable, "app.py"],
            cwd=ROOT,
            env={**os.environ, **settings},
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=2) as answer:
                    answer.read()
                break
            except OSError:
                if self.process.poll() is not None or time.perf_counter() - self.started > 120:
                    raise SystemExit(f"app.py did not answer; see {self.log.name}") from None
                time.sleep(0.05)
        self.answered = time.perf_counter() - self.started
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(timeout=20)
        self.log.close()
        shutil.rmtree(self.home, ignore_errors=True)


class Visit:
    """One visitor's page in a headless Chromium."""

    def __init__(self, page: object) -> None:
        self.page = page

    def first_screen(self, port: int) -> float:
        """Seconds from asking for the page until the radar, the table and the prediction stand there."""
        started = time.perf_counter()
        self.page.goto(f"http://127.0.0.1:{port}/")
        for part in (
            "#radar .js-plotly-plot .scatterlayer .trace",
            "#main-table td",
            "#live-plot .js-plotly-plot .trace",
        ):
            self.page.wait_for_selector(part, timeout=120_000)
        return time.perf_counter() - started

    def release(self, share: float) -> tuple[float, str]:
        """Drag the coefficient's slider to ``share`` of its length; seconds from letting go to the new numbers."""
        before = self.page.inner_text("#main-table")
        slider = self.page.locator("#parameter-lambda input[type=range]")
        slider.scroll_into_view_if_needed()
        box = slider.bounding_box()
        middle = box["y"] + box["height"] / 2
        self.page.mouse.move(box["x"] + 2, middle)
        self.page.mouse.down()
        self.page.mouse.move(box["x"] + share * box["width"], middle, steps=4)
        self.page.mouse.up()
        started = time.perf_counter()
        value = float(self.page.input_value("#parameter-lambda input[type=number]"))
        self.page.wait_for_function(
            """([before, shown]) => document.querySelector('#main-table').innerText !== before
                && document.querySelector('#status').innerText.includes(shown)
                && /\\d+ test images a task/.test(document.querySelector('#status').innerText)""",
            arg=[before, f"λ={value:g}:"],
            timeout=120_000,
            polling=20,
        )
        return time.perf_counter() - started, self.page.inner_text("#status")

    def refined(self) -> float:
        """Seconds until the same result stands there for the whole test sets."""
        started = time.perf_counter()
        self.page.wait_for_function(
            "() => /on the whole test sets/.test(document.querySelector('#status').innerText)"
            " && !/Refining/.test(document.querySelector('#status').innerText)",
            timeout=300_000,
            polling=50,
        )
        return time.perf_counter() - started


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):6.2f}  ({min(values):.2f} to {max(values):.2f}, n={len(values)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="released sliders (default: 9)")
    rounds = parser.parse_args().rounds
    from playwright.sync_api import sync_playwright

    browser_path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    rows = [("import mergelab", 0.3, [import_seconds() for _ in range(5)])]
    yardstick = forward_seconds(5)
    starts, firsts = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=QUIET)
        for turn in range(3):
            with Server() as server:
                starts.append(server.answered)
                visit = Visit(browser.new_page(viewport={"width": 1280, "height": 800}))
                firsts.append(visit.first_screen(server.port))
                if turn < 2:
                    continue
                visit.release(0.3)  # the first one also waits for the models to be read
                visit.refined()
                released = [visit.release(0.05 + 0.9 * n / max(1, rounds - 1))[0] for n in range(rounds)]
                refined = []
                for share in (0.12, 0.22, 0.34):
                    visit.release(share)
                    refined.append(visit.refined())
        browser.close()
    rows += [("app.py to a page that answers", 12, starts), ("first screen complete, after that", 5, firsts)]
    rows += [("slider released to new radar and table", 2, released), ("refined on the whole test sets", 20, refined)]
    print(f"{'what':42} {'at most':>7}  median (smallest to largest)")
    for what, most, values in rows:
        print(f"{what:42} {most:>5} s  {spread(values)}")
    print(f"{'yardstick: one forward pass, 8 x 40 images':42} {'':>7}  {spread(yardstick)}")
    ratio = statistics.median(released) / statistics.median(yardstick)
    print(f"a released slider costs {ratio:.2f} times that pass; {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
