"""Surgery of a merged folder: experts found, files bound to weights, the verbs, and what every output says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from training.learn_zoo import moved_zoo

from mergelab import evaluate, load
from mergelab.cli import main
from mergelab.engine import merge_to_folder, plan_recipe
from mergelab.errors import CheckpointError, TaskError
from mergelab.recipe import Recipe
from mergelab.runs.surgery import SurgerySettings, evaluate_with_surgery, experts_of, operate_on
from mergelab.tasks import load_suite
from mergelab.training.correction import Surgery

QUICK = SurgerySettings(rank=4, steps=200)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return moved_zoo(tmp_path_factory.mktemp("operated") / "tiny")


@pytest.fixture(scope="module")
def merged(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = Recipe(
        "task_arithmetic", tuple(str(zoo / "experts" / name) for name in ("colour", "grey")), str(zoo / "base"),
        {"lambda": 0.4},
    )  # fmt: skip
    return merge_to_folder(plan_recipe(recipe), tmp_path_factory.mktemp("merged") / "out", device="cpu")


@pytest.fixture(scope="module")
def surgery(zoo: Path, merged: Path) -> Surgery:
    return operate_on(merged, zoo, examples=30, settings=QUICK, device="cpu").surgery


def test_experts_are_the_merges_own_and_the_zoos(zoo: Path, merged: Path) -> None:
    suite = load_suite(zoo)
    assert set(experts_of(load(merged), suite)) == {"colour", "grey"}
    alone = experts_of(load({"w": torch.ones(2)}), suite)
    assert {name: Path(source).name for name, source in alone.items()} == {"colour": "colour", "grey": "grey"}


def test_the_bias_falls_on_pictures_fitted_on_and_on_others(zoo: Path, merged: Path, surgery: Surgery) -> None:
    assert surgery.examples == {"grey": 30, "colour": 30} and surgery.suite == "tiny"
    assert surgery.weights_hash == load(merged).weights_hash
    for found in surgery.bias.values():
        assert found["after"] < found["before"] and found["held_out"] == 30
        assert found["held_out_after"] < found["held_out_before"]


def test_only_the_split_that_was_asked_for_is_read(zoo: Path, merged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mergelab.tasks import Task

    asked = set()
    plain = Task._load
    monkeypatch.setattr(Task, "_load", lambda self, name: (asked.add(name), plain(self, name))[1])
    operate_on(merged, zoo, examples=5, settings=SurgerySettings(rank=2, steps=1), device="cpu")
    assert asked == {"val"}
    asked.clear()
    made = operate_on(merged, zoo, examples=5, split="test", settings=SurgerySettings(rank=2, steps=1), device="cpu")
    assert asked == {"test"} and made.surgery.transductive


def test_measuring_with_the_identity_is_measuring_without(zoo: Path, merged: Path) -> None:
    untouched = operate_on(merged, zoo, examples=5, settings=SurgerySettings(rank=2, steps=0), device="cpu").surgery
    found, plain = evaluate_with_surgery(merged, untouched, zoo, device="cpu"), evaluate(merged, zoo, device="cpu")
    assert {name: score.accuracy for name, score in found.tasks.items()} == {
        name: score.accuracy for name, score in plain.tasks.items()
    }  # the unseen task too, by its class means
    assert "task id needed at inference" in found.data_used and "5 unlabelled val pictures" in found.data_used
    assert "task id" not in plain.data_used


def test_corrections_change_what_is_measured(zoo: Path, merged: Path, surgery: Surgery) -> None:
    found, plain = evaluate_with_surgery(merged, surgery, zoo, device="cpu"), evaluate(merged, zoo, device="cpu")
    changed = [
        name for name in surgery.corrections if not torch.equal(found.predictions[name], plain.predictions[name])
    ]
    assert changed
    assert torch.equal(found.predictions["stripes"], plain.predictions["stripes"])


def test_another_models_surgery_is_refused(zoo: Path, surgery: Surgery) -> None:
    with pytest.raises(CheckpointError, match=f"belongs to weights {surgery.weights_hash[:12]}, base has"):
        evaluate_with_surgery(zoo / "base", surgery, zoo, device="cpu")


def test_tasks_that_do_not_go_together_are_refused(zoo: Path, merged: Path, surgery: Surgery) -> None:
    with pytest.raises(TaskError, match="corrections for grey, colour, none of which is measured"):
        evaluate_with_surgery(merged, surgery, zoo, tasks=["stripes"], device="cpu")
    with pytest.raises(TaskError, match="stripes has no expert to correct towards; name one with --expert stripes="):
        operate_on(merged, zoo, tasks=["stripes"], device="cpu")


def test_the_verbs_say_what_was_used_and_what_is_needed(
    zoo: Path, merged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "surgery.safetensors"
    call = ["surgery", str(merged), "--suite", str(zoo), "--out", str(file), "--examples", "10", "--rank", "2",
            "--steps", "3", "--device", "cpu"]  # fmt: skip
    assert main(call) == 0
    said = capsys.readouterr().out
    assert "task id needed at inference" in said and "10 unlabelled val pictures a task" in said
    assert "bias before" in said and f"--surgery {file}" in said
    assert main(call) == 2
    assert "exists: choose another file" in capsys.readouterr().err
    assert main([*call, "--overwrite", "--json", "--split", "test"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["transductive"] is True and "transductive" in found["data_used"]
    assert found["rank"] == 2 and found["width"] == 24 and set(found["bias"]) == {"grey", "colour"}
    assert set(found["projections"]["grey"]["points"]) == {"merged", "expert", "corrected"}
    assert main(["evaluate", str(merged), "--suite", str(zoo), "--surgery", str(file), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "task id needed at inference" in said and "transductive" in said
    assert main(["surgery", str(merged), "--out", str(tmp_path / "x"), "--expert", "grey"]) == 2
    assert "is not TASK=SOURCE" in capsys.readouterr().err
