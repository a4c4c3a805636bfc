"""How quick the lab feels, measured on the real page: ``python tests/benchmarks/lab_speed.py [--rounds 9]``.

Starts ``python app.py``, opens it in a headless Chromium and measures what the project promises: import, start, first
screen, a released slider, the refined result. Figures are seconds, medians beside the smallest and largest; times depend on
the machine, so a plain forward pass over the same pictures is timed in the same run and given as a yardstick.
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
    return float(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout)


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
        self.log = open(Path(self.home) / "app.log", "w")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=ROOT, env={**os.environ, **settings}, stdout=self.log, stderr=subprocess.STDOUT
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
