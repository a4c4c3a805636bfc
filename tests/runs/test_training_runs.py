"""Training runs on a zoo in miniature: kept, killed, resumed, measured, compared; the test split left alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tasks.tiny_zoo import make_zoo

import mergelab
from mergelab.errors import Cancelled, CheckpointError, MergeLabError, RecipeError, TaskError
from mergelab.progress import Stop
from mergelab.recipe import Recipe
from mergelab.runs.training import Record, compare, estimate, read_compare, train
from mergelab.tasks import evaluate
from mergelab.training.recipe import TrainRecipe


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_zoo(tmp_path_factory.mktemp("zoo") / "tiny")


def recipe(zoo: Path, **changes: Any) -> TrainRecipe:
    told = {
        "train": "atm", "base_model": str(zoo / "base"), "suite": str(zoo), "budget": {"rounds": 3},
        "tuning": {"rate": 0.003, "batch": 16}, "watch": {"split": "test", "limit": 20},
    }  # fmt: skip
    return TrainRecipe.from_dict({**told, **changes})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


KINDS: list[dict[str, Any]] = [
    {},
    {"tuning": {"rate": 0.01, "batch": 16, "tune": "lora", "rank": 2}},
    {"tuning": {"rate": 0.003, "batch": 16, "heads": "trained"}, "keep_optimiser": True},
    {"train": "joint", "tuning": {"rate": 0.003, "batch": 16, "schedule": "cosine"}},
    {"train": "joint", "combine": "pcgrad", "tuning": {"rate": 0.01, "batch": 16, "tune": "lora", "rank": 2}},
    {"aggregation": {"merge_method": "ties", "parameters": {"density": 0.5}, "scale": 0.7}, "keep": "best"},
    {"budget": {"rounds": 3, "steps": 2}, "tuning": {"optimiser": "sgd", "rate": 0.01, "pace": "steps"}},
]


class Enough(Exception):  # noqa: N818
    """Ends a run from its news, as a kill would between two rounds."""


@pytest.mark.parametrize("changes", KINDS, ids=["mean", "lora", "heads", "joint", "pcgrad", "ties", "steps"])
def test_a_run_that_was_cut_goes_on_to_the_same_bits(zoo: Path, tmp_path: Path, changes: dict[str, Any]):
    told = recipe(zoo, **changes)
    whole = train(told, tmp_path / "whole")

    def cut(record: Record, _state: Any) -> None:
        if len(record.rounds) == 2:
            raise Enough

    with pytest.raises(Enough):
        train(told, tmp_path / "cut", news=cut)
    assert not (tmp_path / "cut" / "model").exists()
    torch.manual_seed(99)
    resumed = train(told, tmp_path / "cut", resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert [p["accuracy"] for p in resumed.points] == [p["accuracy"] for p in whole.points]
    assert resumed.status == "done" and len(resumed.rounds) == 3
    assert resumed.costs["samples"] == whole.costs["samples"] > 0


def test_experts_go_on_too_and_open_as_checkpoints_with_heads(zoo: Path, tmp_path: Path):
    told = recipe(zoo, train="experts")
    train(told, tmp_path / "whole")

    def cut(record: Record, _state: Any) -> None:
        if len(record.rounds) == 1:
            raise Enough

    with pytest.raises(Enough):
        train(told, tmp_path / "cut", news=cut)
    train(told, tmp_path / "cut", resume=True)
    for task in ("grey", "colour"):
        one, other = (load_file(tmp_path / f / "experts" / task / "model.safetensors") for f in ("whole", "cut"))
        assert same(one, other)
        assert (tmp_path / "cut/experts" / task / "head.safetensors").is_file()
        assert mergelab.load(tmp_path / "cut/experts" / task).weights_hash


def test_an_expert_that_was_finished_when_the_run_was_killed_is_not_trained_again(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from mergelab.training import work

    told = recipe(zoo)
    train(told, tmp_path / "whole")
    calls: list[tuple[int, str]] = []
    begun = work.Trainer.run

    def counted(self: Any, *args: Any, **more: Any) -> Any:
        calls.append((self.key, self.lessons[0].task))
        if calls.count((2, "colour")) == 1 and calls[-1] == (2, "colour"):
            raise Enough
        return begun(self, *args, **more)

    monkeypatch.setattr(work.Trainer, "run", counted)
    with pytest.raises((Enough, MergeLabError)):
        train(told, tmp_path / "cut")
    before = len(calls)
    train(told, tmp_path / "cut", resume=True)
    assert (2, "grey") in calls[:before]
    assert calls[before:] == [(2, "colour"), (3, "grey"), (3, "colour")]
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_a_long_course_goes_on_from_its_last_epoch(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tune: str
):
    from mergelab.training import work

    tuning = {"rate": 0.001, "batch": 16, "tune": tune, "rank": 2}
    told = recipe(zoo, tasks=["colour"], budget={"rounds": 1, "epochs": 4}, tuning=tuning)
    train(told, tmp_path / "whole")
    begun = work._Part.save

    def killed(self: Any, *args: Any) -> None:
        begun(self, *args)
        if len(self.epochs) == 2:
            raise Enough

    with monkeypatch.context() as patch:
        patch.setattr(work._Part, "save", killed)
        with pytest.raises(MergeLabError, match="colour failed with Enough"):
            train(told, tmp_path / "cut")
    torch.manual_seed(7)
    record = train(told, tmp_path / "cut", resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    course = record.rounds[0]["courses"]["colour"]
    assert len(course["epochs"]) == 4 and course["samples"] == 4 * 60


def test_a_task_may_join_later_and_what_is_forgotten_is_said(zoo: Path, tmp_path: Path):
    told = recipe(zoo, tasks=["grey", "colour"], join={"colour": 3}, budget={"rounds": 4}, tuning={"rate": 1e-5})
    record = train(told, tmp_path / "run")
    assert [sorted(round_["courses"]) for round_ in record.rounds] == [["grey"]] * 2 + [["colour", "grey"]] * 2
    assert record.costs["samples"] == 60 * (4 + 2) == estimate(told, device="cpu")["samples"]
    lost = {t: max(p["accuracy"][t] for p in record.points) - record.points[-1]["accuracy"][t] for t in record.tasks}
    assert f"Grey {100 * lost['grey']:.1f}" in record.findings[0]
    found = compare(told, tmp_path / "beside", beside=("joint", "one_shot"), methods=())
    assert all(run["status"] == "done" for run in found["runs"].values())  # what has no rounds to join has no join
    with pytest.raises(RecipeError, match="not among 'tasks'"):
        recipe(zoo, join={"colour": 2})
    with pytest.raises(RecipeError, match="colour must join at a round from 1 to 3"):
        recipe(zoo, tasks=["grey", "colour"], join={"colour": 9})
    with pytest.raises(RecipeError, match="at least one takes part from the first round"):
        recipe(zoo, tasks=["grey"], join={"grey": 2})


def test_workers_train_the_same_bits(zoo: Path, tmp_path: Path):
    """Two processes of one thread each against this one with one thread; the second round finds them warm."""
    from mergelab.executor import executor_of

    told = recipe(zoo, budget={"rounds": 2})
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(told, tmp_path / "here")
    finally:
        torch.set_num_threads(before)
    with executor_of("local", 2, 1) as executor:
        train(told, tmp_path / "there", executor=executor)
    assert same(weights(tmp_path / "here"), weights(tmp_path / "there"))


def test_one_round_of_the_mean_is_the_average_of_experts_trained_apart(zoo: Path, tmp_path: Path):
    one = recipe(zoo, budget={"rounds": 1, "epochs": 2})
    train(one, tmp_path / "atm")
    train(one.replace(train="experts"), tmp_path / "experts")
    averaged = mergelab.merge("linear", {t: tmp_path / "experts/experts" / t for t in ("grey", "colour")})
    found = weights(tmp_path / "atm")
    for name, tensor in averaged.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)


def test_merging_after_every_step_is_joint_training(zoo: Path, tmp_path: Path):
    steps = {"rounds": 6, "steps": 1}
    plain = {"optimiser": "sgd", "rate": 0.002, "batch": 16, "clip": None}
    train(recipe(zoo, budget=steps, tuning=plain), tmp_path / "atm")
    train(recipe(zoo, train="joint", budget=steps, tuning=plain), tmp_path / "joint")
    apart, together = weights(tmp_path / "atm"), weights(tmp_path / "joint")
    for name, tensor in together.items():
        torch.testing.assert_close(apart[name], tensor, rtol=0, atol=2e-6)


def test_validation_runs_never_read_the_test_split(zoo: Path, tmp_path: Path):
    """The same weights, bit for bit, whatever the test split holds; and what is held is never trained on."""
    poisoned = tmp_path / "poisoned"
    shutil.copytree(zoo, poisoned)
    for pack in (poisoned / "suite").glob("*.npz"):
        arrays = dict(np.load(pack))
        random = np.random.default_rng(0)
        arrays["x_test"] = random.integers(0, 256, arrays["x_test"].shape).astype(np.uint8)
        arrays["y_test"] = (arrays["y_test"] + 1) % (int(arrays["y_test"].max()) + 1)
        np.savez_compressed(pack, **arrays)
    start = {"merge_method": "linear", "models": [str(zoo / "experts/grey"), str(zoo / "experts/colour")]}
    changes = {"split": "val", "start": start, "keep": "best", "watch": {"split": "held"}}
    one = train(recipe(zoo, **changes), tmp_path / "one")
    other = train(
        recipe(poisoned, **{**changes, "start": {**start, "models": start["models"]}}), tmp_path / "other"
    )  # fmt: skip
    assert same(weights(tmp_path / "one"), weights(tmp_path / "other"))
    assert one.chosen == other.chosen
    assert [p["held"] for p in one.points] == [p["held"] for p in other.points]


def test_held_validation_items_are_not_trained_on(zoo: Path):
    from mergelab.training.ground import Ground

    ground = Ground(recipe(zoo, split="val"), "cpu")
    for name in ("grey", "colour"):
        pictures = ground.suite[name].split("val")[0]
        held, _ = ground.items(name, "held", None)
        lesson = ground.lesson(name)
        trained = {bytes(picture.numpy().tobytes()) for picture in lesson.inputs}  # type: ignore[union-attr]
        assert not trained & {bytes(picture.numpy().tobytes()) for picture in held}
        assert len(held) + len(lesson) == len(pictures)
        assert len(held) == pytest.approx(0.2 * len(pictures), abs=3)


def test_stop_keeps_the_finished_rounds_and_says_so(zoo: Path, tmp_path: Path):
    stop = Stop()

    def news(record: Record, _state: Any) -> None:
        if len(record.rounds) == 1:
            stop.set()

    with pytest.raises(Cancelled, match="Stopped after 1 of 3 rounds, which are kept; resume goes on from there"):
        train(recipe(zoo), tmp_path / "run", news=news, stop=stop)
    record = Record.read(tmp_path / "run")
    assert record.status == "stopped" and len(record.points) == 2
    assert train(recipe(zoo), tmp_path / "run", resume=True).status == "done"


def test_the_result_opens_and_scores_what_the_record_says(zoo: Path, tmp_path: Path):
    record = train(recipe(zoo, watch={"split": "test", "limit": None}), tmp_path / "run")
    found = evaluate(str(tmp_path / "run" / "model"), str(zoo), device="cpu")
    for task, share in record.points[-1]["accuracy"].items():
        assert found.tasks[task].accuracy == pytest.approx(share)
    assert record.references["base"] == {"grey": 1.0, "colour": pytest.approx(2 / 3)}
    assert record.references["experts"] == {"grey": 1.0, "colour": pytest.approx(0.75)}


def test_references_are_measured_where_no_predictions_are_kept(zoo: Path, tmp_path: Path):
    record = train(recipe(zoo, budget={"rounds": 1}, watch={"split": "val", "limit": None}), tmp_path / "run")
    assert record.references["experts"] == {"grey": 1.0, "colour": 1.0}  # an expert is its base, right on val


def test_the_record_tells_rounds_apart(zoo: Path, tmp_path: Path):
    record = train(recipe(zoo), tmp_path / "run", keep_rounds=True)
    one = record.rounds[0]
    assert set(one["courses"]) == {"grey", "colour"}
    assert np.shape(one["cosines"]) == (2, 2) and one["cosines"][0][0] == 1.0
    before = mergelab.load(zoo / "base")
    expert = load_file(tmp_path / "run/rounds/00001/grey.safetensors")
    length = sum(float((expert[n] - before[n]).double().square().sum()) for n in expert) ** 0.5
    assert one["norms"]["grey"] == pytest.approx(length, rel=1e-5)
    assert record.points[-1]["epochs"] == 3 and record.points[-1]["samples"] == 3 * 2 * 60
    assert json.loads((tmp_path / "run/run.json").read_text())["format"] == "mergelab-training/1"


@pytest.mark.parametrize("kind", ["atm", "joint", "experts"])
@pytest.mark.parametrize("tune", ["full", "lora"])
def test_the_loss_a_round_starts_from_is_that_of_its_weights(zoo: Path, tmp_path: Path, kind: str, tune: str):
    """Measured on the training items themselves: after round 1, and again before the first step of round 2."""
    told = recipe(zoo, train=kind, budget={"rounds": 2}, tuning={"rate": 0.002, "batch": 16, "tune": tune, "rank": 2})
    seen: dict[int, float] = {}

    def news(record: Record, state: Any) -> None:
        from mergelab.runs.training.watch import Watch
        from mergelab.training import statefile
        from mergelab.training.ground import Ground

        if len(record.rounds) == 1:
            watch = Watch(Ground(told, "cpu"), "lesson", None)
            if kind == "experts":
                state = statefile.read(tmp_path / "run/rounds/00001/colour.safetensors")
            seen.update(watch.measure(state).loss)

    record = train(told, tmp_path / "run", news=news)
    courses = record.rounds[1]["courses"]
    if kind == "joint":
        assert courses["all"]["start_loss"] == pytest.approx(sum(seen.values()) / 2, rel=1e-4)
    else:
        assert courses["colour"]["start_loss"] == pytest.approx(seen["colour"], rel=1e-4)


def test_rounds_that_are_not_needed_are_let_go(zoo: Path, tmp_path: Path):
    train(recipe(zoo), tmp_path / "run")
    places = sorted(path.name for path in (tmp_path / "run/rounds").iterdir())
    assert places == ["00003"]
    assert sorted(path.name for path in (tmp_path / "run/rounds/00003").iterdir()) == ["state.safetensors"]


def test_a_comparison_has_its_rows(zoo: Path, tmp_path: Path):
    told = recipe(zoo, budget={"rounds": 2})
    found = compare(told, tmp_path / "run", beside=("joint", "pcgrad", "one_shot"), methods=("task_arithmetic",))
    kinds = [row["kind"] for row in found["table"]]
    assert kinds[0] == "base" and {"atm", "joint", "pcgrad", "one-shot", "experts"} <= set(kinds)
    runs = found["runs"]
    assert runs["atm"]["costs"]["samples"] == runs["joint"]["costs"]["samples"] == 2 * 2 * 60
    epochs = {(row["epochs"], row["method"], row["tuned"]) for row in found["merges"]}
    assert epochs == {(e, m, t) for e in (1.0, 2.0) for m, t in
                      (("mean", False), ("task_arithmetic", False), ("task_arithmetic", True))}  # fmt: skip
    read = read_compare(tmp_path / "run")["table"]
    assert [row["name"] for row in read] == [row["name"] for row in found["table"]]
    assert [row["mean"] for row in read] == pytest.approx([row["mean"] for row in found["table"]], rel=1e-5)
    for row in found["table"]:
        low, high = row["interval"]
        assert low <= row["mean"] <= high


def test_the_control_of_a_refined_merge_is_its_coefficient_on_the_same_labels(zoo: Path, tmp_path: Path):
    start = {"merge_method": "linear", "models": [str(zoo / "experts/grey"), str(zoo / "experts/colour")]}
    told = recipe(zoo, split="val", start=start, budget={"rounds": 1}, watch={"split": "held"})
    found = compare(told, tmp_path / "run", beside=("joint", "alpha"))
    rows = {row["kind"]: row for row in found["table"]}
    assert {"start", "atm", "joint", "alpha"} <= set(rows)
    with pytest.raises(RecipeError, match="this run starts from the base"):
        compare(recipe(zoo), tmp_path / "other", beside=("alpha",))
    with pytest.raises(RecipeError, match="Did you mean 'joint'"):
        compare(recipe(zoo), tmp_path / "other", beside=("joined",))


def test_what_a_run_will_cost_is_what_it_costs(zoo: Path, tmp_path: Path):
    told = recipe(zoo)
    said = estimate(told, device="cpu")
    record = train(told, tmp_path / "run")
    assert said["samples"] == record.costs["samples"] and said["parts"] == 1
    both = estimate(told, beside=("joint", "one_shot"), device="cpu")
    assert both["samples"] == 3 * said["samples"] and both["parts"] == 3
    assert said["sent_bytes"] == record.costs["sent_bytes"]
    assert said["stored_bytes"] == record.costs["stored_bytes"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train": "atmm"}, "'train' cannot be 'atmm'. Did you mean 'atm'"),
        ({"budgets": {}}, "Unknown key 'budgets' in the training recipe. Did you mean 'budget'"),
        ({"budget": {"rounds": 0}}, "budget: 'rounds' of the budget must be a whole number from 1"),
        ({"budget": {"rounds": 2, "epochs": 2, "steps": 3}}, "has 'epochs' or 'steps' a round, not both"),
        ({"tuning": {"optimiser": "adamm"}}, "tuning: 'optimiser' cannot be 'adamm'. Did you mean"),
        ({"tuning": {"rate": float("nan")}}, "tuning: 'rate' must be a number from 0 to 100"),
        ({"tuning": {"seed": 3}}, "the seed is the recipe's own"),
        ({"aggregation": {"merge_method": "regmean"}}, "aggregation: The experts of a round cannot be merged by"),
        ({"aggregation": {"merge_method": "tiess"}}, "Did you mean 'ties'"),
        ({"train": "joint", "aggregation": {"merge_method": "ties"}}, "'aggregation' is for atm"),
        ({"combine": "pcgrad"}, "'combine: pcgrad' is for joint training"),
        ({"keep_optimiser": True, "tuning": {"tune": "lora"}}, "'keep_optimiser' needs tune: full"),
        ({"split": "val", "watch": {"split": "val"}}, "watch the held ones"),
        ({"tasks": []}, "'tasks' must be a list of at least one"),
        ({"tasks": ["grey", "grey"]}, "names a task twice"),
        ({"start": 3}, "'start' must be a recipe or a source"),
        ({"images": 0}, "'images' must be a whole number from 1"),
    ],
)
def test_a_bad_recipe_is_named(zoo: Path, changes: dict[str, Any], said: str):
    with pytest.raises(MergeLabError) as error:
        recipe(zoo, **changes)
    assert said in str(error.value)


def test_a_recipe_reads_back_and_its_hash_ignores_what_is_watched(zoo: Path):
    told = recipe(zoo, start={"merge_method": "linear", "models": ["zoo:starter/mnist"]}, images=5)
    again = TrainRecipe.from_yaml(told.to_yaml())
    assert again == told and again.hash == told.hash
    assert replace(told, watch=recipe(zoo, watch={"split": "none"}).watch).hash == told.hash
    assert told.replace(seed=1).hash != told.hash
    assert isinstance(again.start, Recipe)


def test_folders_of_others_are_left_alone(zoo: Path, tmp_path: Path):
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(CheckpointError):
            train(recipe(zoo), other, **options)  # type: ignore[arg-type]
    assert (other / "thesis.txt").read_text() == "years of work"
    train(recipe(zoo, budget={"rounds": 1}), tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("kept")
    with pytest.raises(CheckpointError):
        train(recipe(zoo), tmp_path / "run", overwrite=True)
    assert (tmp_path / "run" / "notes.txt").is_file()


def test_another_recipe_does_not_resume(zoo: Path, tmp_path: Path):
    train(recipe(zoo, budget={"rounds": 1}), tmp_path / "run")
    with pytest.raises(CheckpointError, match="has another recipe"):
        train(recipe(zoo), tmp_path / "run", resume=True)


def test_a_damaged_record_is_a_sentence(zoo: Path, tmp_path: Path):
    train(recipe(zoo, budget={"rounds": 1}), tmp_path / "run")
    file = tmp_path / "run" / "run.json"
    good = json.loads(file.read_text())
    for bad, said in (("{", "not valid JSON"), ("[]", "the format is 'list'"), (json.dumps({**good, "points": 3}),
                      "is damaged"), (json.dumps({**good, "format": "x"}), "this version reads")):  # fmt: skip
        file.write_text(bad)
        with pytest.raises(CheckpointError, match=said):
            Record.read(tmp_path / "run")


def test_a_task_without_training_pictures_is_named(zoo: Path, tmp_path: Path):
    poor = tmp_path / "poor"
    shutil.copytree(zoo, poor)
    arrays = {k: v for k, v in np.load(poor / "suite/grey.npz").items() if "train" not in k}
    np.savez_compressed(poor / "suite/grey.npz", **arrays)
    with pytest.raises(TaskError, match="grey has no train pictures"):
        train(recipe(poor), tmp_path / "run")


def test_divergence_is_kept_in_the_record(zoo: Path, tmp_path: Path):
    told = recipe(zoo, tuning={"optimiser": "sgd", "rate": 100.0, "batch": 16, "clip": None})
    with pytest.raises(MergeLabError, match=r"diverge|not finite|NaN"):
        train(told, tmp_path / "run")
    assert Record.read(tmp_path / "run").status == "failed"
