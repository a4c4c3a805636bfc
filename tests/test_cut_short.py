"""A merge that is cut short, from outside: what is left must not look whole, and the next run must succeed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import mergelab
from mergelab.errors import MergeLabError

TENSORS, SIDE = 96, 512  # 1 MiB each


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Two models of 96 MiB and the recipe of their average."""
    for name, value in (("one", 1.0), ("two", 3.0)):
        save_file(
            {f"layer.{n}.weight": torch.full((SIDE, SIDE), value) for n in range(TENSORS)},
            tmp_path / f"{name}.safetensors",
        )
    path = tmp_path / "recipe.json"
    models = [{"model": str(tmp_path / f"{name}.safetensors")} for name in ("one", "two")]
    path.write_text(json.dumps({"merge_method": "linear", "models": models}))
    return path


def command(recipe: Path, out: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "mergelab",
        "merge",
        str(recipe),
        "--out",
        str(out),
        "--max-shard-size",
        "4MB",
        "--device",
        "cpu",
    ]


def loadable(folder: Path) -> list[Path]:
    """Every folder below that MergeLab would take for a checkpoint."""
    found = []
    for place in (path for path in folder.rglob("*") if path.is_dir()):
        try:
            mergelab.load(place)
        except MergeLabError:
            continue
        found.append(place)
    return found


def check_whole(out: Path) -> None:
    with mergelab.load(out) as merged:
        assert len(merged) == TENSORS
        assert all(torch.equal(merged[name], torch.full((SIDE, SIDE), 2.0)) for name in merged)


def test_a_merge_killed_in_the_middle_of_writing_leaves_nothing_that_loads(recipe: Path, root: Path):
    out = recipe.parent / "merged"
    process = subprocess.Popen(command(recipe, out), cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    begun = False
    until = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < until:
        if len(list(recipe.parent.glob("merged.partial*/*.safetensors"))) >= 2:
            begun = True
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.001)
    assert process.wait(timeout=60) == -signal.SIGKILL and begun, "the merge was not killed while it wrote"
    assert not out.exists()
    assert loadable(recipe.parent) == []
    subprocess.run(command(recipe, out), cwd=root, check=True, capture_output=True, timeout=120)
    check_whole(out)
    assert loadable(recipe.parent) == [out]
    assert not list(recipe.parent.glob("*.partial*")), "the next run clears what the killed one left"


def test_a_merge_that_runs_out_of_disk_says_so_and_leaves_nothing(recipe: Path, root: Path):
    out = recipe.parent / "merged"
    # No file may grow beyond 2 MiB, and the signal for that is ignored: writing fails as on a full disk.
    limited = ["bash", "-c", 'trap "" XFSZ; ulimit -f 2048; exec "$@"', "limited", *command(recipe, out)]
    done = subprocess.run(limited, cwd=root, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not out.exists() and not list(recipe.parent.glob("*.partial*"))
    subprocess.run(command(recipe, out), cwd=root, check=True, capture_output=True, timeout=120)
    check_whole(out)
