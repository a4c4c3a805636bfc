"""FeatCal on a written merge: features come nearer to the experts', the folder is a checkpoint like the merge."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch
from training.learn_zoo import moved_zoo

from mergelab import cli
from mergelab.calibration.featcal_cost import FeatureCost
from mergelab.checkpoints import load
from mergelab.engine import merge_to_folder, plan_recipe
from mergelab.engine.folder import RECIPE_FILE
from mergelab.errors import Cancelled, CheckpointError, MergeLabError, TaskError
from mergelab.models import build
from mergelab.progress import Stop
from mergelab.recipe import ModelEntry, Recipe
from mergelab.runs import Bench
from mergelab.runs.calibrated import CALIBRATION_FILE, DriftSettings, calibrate
from mergelab.runs.calibrated_bench import calibrate_merge, calibration_cost
from mergelab.tasks import evaluate, load_suite

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


# ---- the same on a bench, as the page asks for it -------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench(zoo: Path) -> Bench:
    return Bench(str(zoo / "base"), {t: str(zoo / "experts" / t) for t in TASKS}, load_suite(zoo), device="cpu")


@pytest.fixture(scope="module")
def recipe(merged: Path) -> Recipe:
    return Recipe.read(merged / RECIPE_FILE)


def written_by(command: str, merged: Path, out: Path) -> Path:
    """Where the command that a calibration names puts its result, run on the merge on disk."""
    python, flag, package, *words = shlex.split(command)
    assert (python, flag, package) == ("python", "-m", "mergelab")
    words[words.index("merged")], words[words.index("calibrated")] = str(merged), str(out)
    assert cli.main([*words, "--device", "cpu"]) == 0
    return out


def test_a_calibration_in_memory_is_what_its_command_writes(  # noqa: PLR0917
    bench: Bench, recipe: Recipe, merged: Path, zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = DriftSettings(ridge=0.1, anchor=1.5, teacher=0.5)
    found = calibrate_merge(bench, recipe, examples=20, settings=settings, per_task=10)
    json.dumps(found)
    assert found["tasks"] == [t for t in load_suite(zoo).names if t in TASKS] and found["hash"] == recipe.hash
    assert found["examples"] == dict.fromkeys(TASKS, 20) and not found["transductive"] and found["skipped"] == {}
    plain = bench.evaluate(recipe, per_task=10)
    out = written_by(found["command"], merged, tmp_path / "out")
    again = evaluate(str(out), load_suite(zoo), limit=10, device="cpu")
    for task, score in found["accuracy"].items():
        assert score["before"] == plain.tasks[task].accuracy and score["after"] == again.tasks[task].accuracy
        assert tuple(score["after_interval"]) == again.tasks[task].interval and score["n"] == 10
    before, after = load(merged), load(out)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(found["tensors"]) and len(changed) == 32
    for name, share in found["tensors"].items():
        moved = torch.linalg.vector_norm((after[name] - before[name]).double()) / before[name].double().norm()
        assert share == pytest.approx(float(moved), rel=1e-3)
    assert f"Data used: {found['data_used']}" in capsys.readouterr().out
    # and the merge on the bench is as it was
    assert bench.evaluate(recipe, per_task=10) == plain
    state = bench.merged(recipe)
    assert all(torch.equal(state[name], before[name]) for name in before)


def test_the_command_names_the_base_where_the_merge_does_not(
    bench: Bench, zoo: Path, merged: Path, tmp_path: Path
) -> None:
    models = tuple(ModelEntry(str(zoo / "experts" / name), name) for name in TASKS)
    mean = Recipe("linear", models, suite=str(zoo))
    found = calibrate_merge(bench, mean, examples=10, split="test", per_task=5)
    assert f"--base {zoo / 'base'}" in found["command"] and f"--suite {zoo}" in found["command"]
    assert found["transductive"] and "(transductive" in found["data_used"]
    folder = merge_to_folder(plan_recipe(mean), tmp_path / "mean")
    before, after = load(folder), load(written_by(found["command"], folder, tmp_path / "out"))
    for name, share in found["tensors"].items():
        moved = torch.linalg.vector_norm((after[name] - before[name]).double()) / before[name].double().norm()
        assert share == pytest.approx(float(moved), rel=1e-3)


def test_a_cost_is_in_proportion_to_pictures_and_blocks(
    bench: Bench, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, many = (calibration_cost(bench, recipe, examples=count) for count in (10, 1000))
    assert (few["pictures"], many["pictures"]) == (20, 120), "there are 60 of each task"
    assert few["tasks"] == few["blocks"] == 2 and 0 < few["seconds"] < many["seconds"] and few["timed"] == 32
    one = FeatureCost(blocks=3, picture=0.5, fit=2.0, timed=4)
    assert one.seconds(10) == 3 * (0.5 * 10 + 2.0)
    state = {name: tensor.clone() for name, tensor in bench.model().module.state_dict().items()}
    calibration_cost(bench, recipe.replace(models=recipe.models[:1]))
    assert all(torch.equal(tensor, state[name]) for name, tensor in bench.model().module.state_dict().items())


def test_stop_and_what_a_bench_refuses(bench: Bench, recipe: Recipe) -> None:
    stop = Stop()
    stop.set()
    with pytest.raises(Cancelled):
        calibrate_merge(bench, recipe, stop=stop)
    strangers = recipe.replace(models=tuple(ModelEntry(entry.model, f"x{i}") for i, entry in enumerate(recipe.models)))
    for ask in (calibrate_merge, calibration_cost):
        with pytest.raises(TaskError, match="no features to calibrate to"):
            ask(bench, strangers)
        with pytest.raises(TaskError, match="has no nope pictures"):
            ask(bench, recipe, split="nope")
    bare = Bench(bench.base, bench.experts, None, device="cpu")
    with pytest.raises(TaskError, match="no suite"):
        calibrate_merge(bare, recipe)
