"""FeatCal on a written merge: features come nearer to the experts', the folder is a checkpoint like the merge."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from training.learn_zoo import moved_zoo

from mergelab import cli
from mergelab.checkpoints import load
from mergelab.engine import merge_to_folder, plan_recipe
from mergelab.errors import CheckpointError, MergeLabError, TaskError
from mergelab.models import build
from mergelab.recipe import Recipe
from mergelab.runs.calibrated import CALIBRATION_FILE, calibrate
from mergelab.tasks import load_suite

TASKS = ("grey", "colour")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return moved_zoo(tmp_path_factory.mktemp("drift") / "tiny")


@pytest.fixture(scope="module")
def merged(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = Recipe.from_dict({
        "merge_method": "task_arithmetic", "base_model": str(zoo / "base"), "parameters": {"lambda": 0.5},
        "models": [{"model": str(zoo / "experts" / name), "name": name} for name in TASKS],
    })  # fmt: skip
    return merge_to_folder(plan_recipe(recipe), tmp_path_factory.mktemp("merged") / "ta")


def drift(zoo: Path, source: Path) -> float:
    """Mean distance of final features to the experts' on test pictures that the calibration has not seen."""
    suite, total = load_suite(zoo), 0.0
    model = build(str(source), device="cpu")
    for name in TASKS:
        images = suite[name].split("test")[0]
        expert = build(str(zoo / "experts" / name), device="cpu").encode(images)
        total += float((model.encode(images) - expert).norm(dim=1).mean())
    return total / len(TASKS)


def test_the_command_line_calibrates(
    zoo: Path, merged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["calibrate", str(merged), "--out", str(out), "--suite", str(zoo), "--device", "cpu", "--anchor", "1"]
    assert cli.main([*arguments, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["blocks"] == ["encoder.layer.0", "encoder.layer.1"] and said["skipped"] == {}
    assert said["data_used"] == "60 unlabelled val pictures a task of grey, colour"
    before, after = load(merged), load(out)
    assert set(before) == set(after) and after.config == before.config
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    log = json.loads((out / CALIBRATION_FILE).read_text())
    assert changed == {entry["tensor"] for entry in log["tensors"]} and len(changed) == said["tensors"] == 32
    assert log["merged"] == before.weights_hash and log["recipe"]["merge_method"] == "task_arithmetic"
    assert drift(zoo, out) < drift(zoo, merged)
    assert cli.main(["evaluate", str(out), "--suite", str(zoo), "--limit", "5"]) == 0
    assert cli.main(arguments) == 2
    assert "is not empty" in capsys.readouterr().err


def refused(error: type[MergeLabError], *args: object, **more: object) -> str:
    with pytest.raises(error) as caught:
        calibrate(*args, device="cpu", **more)  # type: ignore[arg-type]
    return str(caught.value)


def test_what_is_refused(zoo: Path, merged: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert refused(TaskError, merged, out, zoo, tasks=["stripes"]) == (
        "There is no expert for the task stripes, so there are no features to calibrate to; name one with --expert "
        "TASK=SOURCE."
    )
    found = refused(CheckpointError, merged, out, zoo, experts={"grey": {"a": torch.ones(2)}}, tasks=["grey"])
    assert found.startswith("Model 'grey' lacks ") and "tensors that the merge has: 'embeddings.cls_token'" in found
    assert not out.exists()
