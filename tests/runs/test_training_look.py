"""Looks at training runs in miniature: what is counted by hand, what is measured where it is said to be."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tasks.tiny_zoo import make_zoo

from mergelab import cli, figures
from mergelab.analysis import plane
from mergelab.errors import Cancelled, CheckpointError, MergeLabError, RecipeError
from mergelab.progress import Stop
from mergelab.runs.training import Record, compare, train
from mergelab.runs.training.controls import (
    drift,
    first_epoch_share,
    joint_control,
    mean_absolute,
    orthogonality,
    train_control,
)
from mergelab.runs.training.iterates import Runs
from mergelab.runs.training.landscape import Marked, Pair, barriers, evaluations, landscape, measured
from mergelab.runs.training.look import PARTS, checkpoints, look, read_look, write_look
from mergelab.runs.training.watch import Watch
from mergelab.training.recipe import TrainRecipe

LIMIT = 8


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_zoo(tmp_path_factory.mktemp("zoo") / "tiny")


def recipe(zoo: Path, **changes: Any) -> TrainRecipe:
    told = {
        "train": "atm", "base_model": str(zoo / "base"), "suite": str(zoo), "budget": {"rounds": 2}, "images": 24,
        "tuning": {"rate": 0.003, "batch": 12}, "watch": {"split": "test", "limit": LIMIT},
    }  # fmt: skip
    return TrainRecipe.from_dict({**told, **changes})


@pytest.fixture(scope="module")
def kept(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison with every round's models, and its control."""
    folder = tmp_path_factory.mktemp("runs") / "kept"
    compare(recipe(zoo), folder, beside=("joint", "one_shot"), methods=("task_arithmetic",), keep_rounds=True,
            device="cpu")  # fmt: skip
    train_control(folder, device="cpu")
    return folder


@pytest.fixture(scope="module")
def seen(kept: Path) -> dict[str, Any]:
    return look(kept, limit=LIMIT, steps=3, device="cpu")


def number(*values: float) -> dict[str, torch.Tensor]:
    return {"w": torch.tensor(values, dtype=torch.float64)}


# ---- shares ----------------------------------------------------------------------------------------------------------


def by_hand(norms: dict[str, list[list[float | None]]], **more: Any) -> dict[str, Any]:
    """A record of experts: norms of tasks' epochs by round; the weights go as far as the norm's square."""
    count = len(next(iter(norms.values())))
    rounds = [
        {"courses": {task: {"epochs": [{"norm": n, "moved": (n or 0) ** 2} for n in rows[k]]} for task, rows in
                     norms.items()}}
        for k in range(count)
    ]  # fmt: skip
    return {"kind": "experts", "tasks": list(norms), "rounds": rounds, "recipe": {"budget": {"rounds": count}}, **more}


def test_shares_are_those_of_a_sum_by_hand():
    found = first_epoch_share(by_hand({"a": [[4.0], [2.0], [1.0], [1.0]], "b": [[1.0], [1.0], [1.0], [1.0]]}))
    assert found["a"]["norm"] == 0.5 and found["a"]["epochs"] == [4, 2, 1, 1]
    assert found["a"]["moved"] == pytest.approx(16 / 22)
    assert found["a"]["first_five"] == [0.5, 0.25, 0.125, 0.125] and sum(found["a"]["first_five"]) == 1
    assert found["b"]["norm"] == found["b"]["even"] == 0.25


def test_epochs_of_one_round_count_one_by_one_and_the_first_five_are_shown():
    found = first_epoch_share(by_hand({"a": [[3.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]]}))["a"]
    assert found["norm"] == pytest.approx(0.3) and len(found["epochs"]) == 8 and found["even"] == 0.125
    assert found["first_five"] == pytest.approx([0.3, 0.1, 0.1, 0.1, 0.1])


def test_what_has_no_share_has_none():
    assert first_epoch_share(by_hand({"a": [[0.0], [0.0]]}))["a"]["norm"] is None
    assert first_epoch_share(by_hand({"a": [[1.0], [None]]}))["a"]["first_five"] == [None, None]
    with pytest.raises(MergeLabError, match="experts that are trained apart"):
        first_epoch_share({**by_hand({"a": [[1.0]]}), "kind": "atm"})
    with pytest.raises(MergeLabError, match="rounds of steps"):
        first_epoch_share(by_hand({"a": [[1.0]]}, recipe={"budget": {"rounds": 1, "steps": 3}}))
    with pytest.raises(MergeLabError, match="No expert has finished"):
        first_epoch_share(by_hand({"a": []}))


def test_shares_of_a_run_add_up(kept: Path, seen: dict[str, Any]):
    record = Record.read(kept / "one_shot")
    for task, one in seen["shares"].items():
        norms = [r["courses"][task]["epochs"][0]["norm"] for r in record.rounds]
        assert one["norm"] == pytest.approx(norms[0] / sum(norms), rel=1e-5)
        assert sum(one["first_five"]) == pytest.approx(1, abs=1e-5) and one["even"] == 0.5


# ---- cosines ---------------------------------------------------------------------------------------------------------


def test_orthogonality_is_the_mean_of_absolute_cosines():
    cosines = [[1.0, -0.5, 0.1], [-0.5, 1.0, None], [0.1, None, 1.0]]
    record = {
        "kind": "atm", "points": [{"round": 0, "epochs": 0}, {"round": 1, "epochs": 2.0}],
        "rounds": [{"round": 1, "cosines": cosines, "norms": {"a": 1.0, "b": 2.0, "c": 3.0}}],
    }  # fmt: skip
    joint = {"kind": "joint", "points": [], "rounds": [{"round": 1}]}
    (row,) = orthogonality({"atm": record, "joint": joint})
    assert row["mean_abs"] == pytest.approx(0.3) and row["epochs"] == 2 and row["norm"] == 2 and row["run"] == "atm"
    assert mean_absolute([[1.0]]) is None and mean_absolute([[None, None], [None, None]]) is None


def test_drift_by_hand():
    path = [number(0, 0), number(1, 0), number(1, 1)]
    experts = [{"a": number(2, 0), "b": number(0, 2)}, {"a": number(1, 3), "b": number(-1, 0)}]
    one, two = drift(path, experts)
    assert one["to_drift"] == {"a": None, "b": None} and one["to_previous"] is None and one["step"] == 1
    assert one["contributed"]["mean_abs"] == 0 and one["contributed"]["norms"] == {"a": 2, "b": 2}
    # τ_a = (0, 3), τ_b = (-2, 0); the drift is (1, 0), the step (0, 1) after (1, 0)
    assert two["to_drift"] == {"a": pytest.approx(0, abs=1e-12), "b": pytest.approx(-1)}
    assert two["to_previous"] == pytest.approx(0, abs=1e-12) and two["from_start"] == pytest.approx(math.sqrt(2))
    # contributed: (2, 3) and (-2, 2)
    assert two["contributed"]["mean_abs"] == pytest.approx(2 / math.sqrt(13 * 8))
    with pytest.raises(CheckpointError, match="2 rounds need 3 models"):
        drift(path[:2], experts)


def test_the_drift_of_a_run_is_that_of_its_states(kept: Path, seen: dict[str, Any]):
    rows = {(row["run"], row["round"]): row for row in seen["orthogonality"]["rows"]}
    assert set(rows) == {("atm", 1), ("atm", 2), ("one_shot", 1), ("one_shot", 2), ("control", 1)}
    assert rows["one_shot", 2]["epochs"] == 2 and rows["control", 1]["norm"] > 0
    one, two = seen["orthogonality"]["drift"]["atm"]
    record = Record.read(kept / "atm")
    assert one["contributed"]["norms"] == pytest.approx(record.rounds[0]["norms"], rel=1e-4)
    assert one["contributed"]["mean_abs"] == pytest.approx(rows["atm", 1]["mean_abs"], rel=1e-3)
    assert [one["from_start"], two["from_start"]] == pytest.approx([r["from_start"] for r in record.rounds], rel=1e-4)
    state, before = (load_file(kept / f"atm/rounds/0000{k}/state.safetensors") for k in (2, 1))
    way = sum(float((state[n].double() - before[n].double()).square().sum()) for n in state) ** 0.5
    assert two["step"] == pytest.approx(way, rel=1e-5) and "drift" not in seen["left_out"]


def test_the_control_starts_where_joint_training_ended(zoo: Path, kept: Path, tmp_path: Path):
    joint, control = Record.read(kept / "joint"), Record.read(kept / "control")
    assert control.points[0]["loss"] == pytest.approx(joint.points[-1]["loss"], rel=1e-4)
    assert control.kind == "experts" and control.recipe.budget.rounds == 1 and len(control.rounds) == 1
    before = (kept / "control/run.json").stat().st_mtime_ns
    train_control(kept, device="cpu")
    assert (kept / "control/run.json").stat().st_mtime_ns == before, "it is not trained twice"
    told = joint_control(joint, "somewhere")
    assert told.train == "experts" and told.start == "somewhere" and told.tuning == joint.recipe.tuning
    with pytest.raises(RecipeError, match="this run is atm"):
        joint_control(Record.read(kept / "atm"), "somewhere")
    trained = {"rate": 0.003, "batch": 12, "heads": "trained"}
    with pytest.raises(RecipeError, match="Heads were trained along"):
        joint_control(Record(recipe(zoo, train="joint", tuning=trained), ("grey",), {}), "somewhere")
    with pytest.raises(CheckpointError, match="no finished joint run"):
        train_control(tmp_path)


def test_a_control_of_an_earlier_joint_model_does_not_count(kept: Path, tmp_path: Path):
    other = tmp_path / "other"
    shutil.copytree(kept, other)
    text = json.loads((other / "joint/run.json").read_text())
    text["points"][-1]["loss"] = {task: 2 * loss + 1 for task, loss in text["points"][-1]["loss"].items()}
    (other / "joint/run.json").write_text(json.dumps(text))
    found = look(other, what=("orthogonality",), device="cpu")
    assert "control" not in found["runs"] and "--control" in found["left_out"]["control"]


# ---- the plane -------------------------------------------------------------------------------------------------------


def test_anchors_and_paths_lie_where_they_belong(kept: Path, seen: dict[str, Any]):
    land, runs = seen["landscape"], Runs(kept, "cpu")
    base, atm, joint = runs.start(), runs.after("atm", 2), runs.after("joint", 2)
    made = plane(base, atm, joint)
    assert [row["title"] for row in land["points"]] == ["base", "ATM", "joint"]
    for row, (x, y) in zip(land["points"], made.anchors, strict=True):
        assert (row["x"], row["y"], row["off"]) == (pytest.approx(x, rel=1e-5), pytest.approx(y, rel=1e-5), 0)
    way = land["paths"]["ATM"]
    assert len(way) == 3 and way[0][:2] == pytest.approx([0, 0], abs=1e-6)
    assert way[1] == pytest.approx(made.locate(runs.after("atm", 1)), rel=1e-4, abs=1e-6) and way[1][2] > 1e-3
    assert way[2][:2] == pytest.approx(made.anchors[1], rel=1e-5, abs=1e-6)
    assert land["paths"]["joint"][2][:2] == pytest.approx(made.anchors[2], rel=1e-5)
    assert land["xs"][0] < 0 < land["xs"][-1] and made.reach < land["xs"][-1]
    assert land["evaluations"] == seen["cost"]["landscape"]["evaluations"] == evaluations(3) == 12
    assert seen["cost"]["landscape"]["pictures"] == 12 * 2 * LIMIT


def test_losses_at_anchors_are_those_of_the_watch_and_cells_those_of_their_points(kept: Path):
    runs = Runs(kept, "cpu")
    base, atm, joint = runs.start(), runs.after("atm", 2), runs.after("joint", 2)
    marks = [Marked(name, state, name) for name, state in (("base", base), ("ATM", atm), ("joint", joint))]
    extra = Marked("half way", runs.after("atm", 1), "rounds")
    land = landscape(runs.ground, *marks, points=[extra], split="val", limit=LIMIT, steps=2, margin=0)
    watch = Watch(runs.ground, "val", LIMIT)
    for row, mark in zip(land["points"], (*marks, extra), strict=True):
        told = watch.measure(dict(mark.state))
        assert row["loss"] == pytest.approx(sum(told.loss.values()) / 2, rel=1e-5)
        assert row["accuracy"] == sum(told.accuracy.values()) / 2
    assert land["points"][3]["off"] > 0 and land["evaluations"] == 4 + 3 + 1 and land["items"] == watch.items
    made = plane(base, atm, joint)
    corner = watch.measure(made.point(land["xs"][1], land["ys"][0]))
    assert land["loss"][0][1] == pytest.approx(sum(corner.loss.values()) / 2, rel=1e-5)
    assert [land["tasks"][name]["loss"][0][1] for name in runs.ground.names] == pytest.approx(
        list(corner.loss.values()), rel=1e-5
    )


def test_a_plane_stops_when_it_is_asked_to_and_tells_how_far_it_is(kept: Path):
    stop, told = Stop(), []

    def progress(done: int, total: int, text: str) -> None:
        told.append((done, total))
        if len(told) == 5:
            stop.set()

    with pytest.raises(Cancelled):
        look(kept, what=("landscape",), limit=2, steps=2, device="cpu", progress=progress, stop=stop)
    assert told == [(k, 6 + evaluations(2)) for k in range(5)]


def test_heads_that_were_trained_along_go_with_their_models(zoo: Path, tmp_path: Path):
    told = recipe(zoo, tuning={"rate": 0.003, "batch": 12, "heads": "trained"}, watch={"split": "held", "limit": LIMIT})
    record = train(told, tmp_path / "run", keep_rounds=True, device="cpu")
    runs = Runs(tmp_path / "run", "cpu")
    watch = Watch(runs.ground, "held", LIMIT)
    state = runs.after("atm", 2, heads=True)
    assert "heads/grey/weight" in state and len(state) == len(list(state)) == len(runs.after("atm", 2)) + 4
    for number_, point in enumerate(record.points):
        seen = measured(watch, runs.after("atm", number_, heads=True))
        assert seen.loss == pytest.approx(point["loss"], rel=1e-4)


def test_adapters_leave_the_rest_to_the_base(zoo: Path, tmp_path: Path):
    told = recipe(zoo, tuning={"rate": 0.01, "batch": 12, "tune": "lora", "rank": 2}, budget={"rounds": 3})
    train(told, tmp_path / "run", keep_rounds=True, device="cpu")
    runs = Runs(tmp_path / "run", "cpu")
    start, expert = runs.start(), runs.expert("atm", 3, "grey")
    assert list(start) == list(expert) == list(runs.after("atm", 2))
    stored = load_file(tmp_path / "run/rounds/00003/grey.safetensors")
    assert 0 < len(stored) < len(start) and all(torch.equal(expert[name], stored[name]) for name in stored)
    found = look(tmp_path / "run", steps=2, limit=2, device="cpu")  # one run: its middle round is the third model
    assert [row["title"] for row in found["landscape"]["points"]] == ["base", "ATM", "ATM 2"]
    assert set(found["left_out"]) == {"shares", "control"} and "--beside one_shot" in found["left_out"]["shares"]
    assert [row["ends"] for row in found["barriers"]] == [["base", "ATM"]]


# ---- lines and paper -------------------------------------------------------------------------------------------------


def test_a_model_has_no_barrier_to_itself(kept: Path):
    runs = Runs(kept, "cpu")
    base, atm = Marked("base", runs.start(), "base"), Marked("ATM", runs.after("atm", 2), "ATM")
    same, other = barriers(
        runs.ground, [Pair(atm, atm), Pair(base, atm, ("colour",))], split="held", limit=LIMIT, steps=3
    )
    assert same["barrier"] == pytest.approx(0, abs=1e-6)
    assert same["barriers"] == pytest.approx({"grey": 0, "colour": 0}, abs=1e-6)
    assert list(other["curves"]) == ["colour", "mean"] and other["items"] == {"colour": LIMIT}
    told = Watch(runs.ground, "held", LIMIT).measure(dict(runs.after("atm", 2))).loss["colour"]
    assert other["curves"]["colour"][-1] == pytest.approx(told, rel=1e-5) and other["alphas"] == [0, 0.5, 1]
    middle, chord = other["curves"]["mean"][1], (other["curves"]["mean"][0] + other["curves"]["mean"][2]) / 2
    assert other["barrier"] == pytest.approx(max(0, middle - chord), abs=1e-9)


def test_barriers_are_between_ends_and_between_neighbouring_experts(seen: dict[str, Any]):
    assert [row["ends"] for row in seen["barriers"]] == [
        ["base", "ATM"], ["base", "joint"], ["ATM", "joint"], ["Grey", "Colour"]
    ]  # fmt: skip
    assert list(seen["barriers"][-1]["barriers"]) == ["grey", "colour"]
    assert seen["cost"]["barriers"] == {"evaluations": 12, "pictures": 12 * 2 * LIMIT}


def test_models_on_paper(kept: Path, seen: dict[str, Any]):
    flat = seen["projection"]
    assert flat["names"] == ["base", "ATM 1", "ATM 2", "joint 1", "joint 2", "Grey", "Colour", "average",
                             *(name for name in flat["names"] if name.startswith("task_arithmetic"))]  # fmt: skip
    assert len(flat["names"]) == 9 and flat["groups"]["Grey"] == "experts" and flat["groups"]["ATM 1"] == "ATM"
    assert flat["paths"] == {"ATM": ["base", "ATM 1", "ATM 2"], "joint": ["base", "joint 1", "joint 2"]}
    # the average of the experts, made again, is the middle of the two
    places = dict(zip(flat["names"], flat["coordinates"], strict=True))
    middle = [(a + b) / 2 for a, b in zip(places["Grey"], places["Colour"], strict=True)]
    assert places["average"] == pytest.approx(middle, abs=1e-4)
    assert checkpoints(Runs(kept, "cpu"))["names"] == tuple(flat["names"][:7])


# ---- the whole -------------------------------------------------------------------------------------------------------


def test_the_figures_take_what_was_found(seen: dict[str, Any]):
    land, flat = seen["landscape"], seen["projection"]
    figures.landscape(land["xs"], land["ys"], land["loss"], land["points"], land["paths"])
    figures.checkpoints(flat, flat["groups"], flat["paths"])
    for row in seen["barriers"]:
        figures.barriers(row["alphas"], row["curves"], ends=tuple(row["ends"]))


def test_a_look_says_what_it_looked_at_and_reads_back(seen: dict[str, Any], tmp_path: Path):
    assert seen["left_out"] == {} and all(name in seen for name in PARTS)
    assert seen["split"] == "held" and seen["items"] == {"grey": LIMIT, "colour": LIMIT}
    assert seen["runs"]["atm"] == {"kind": "atm", "title": "ATM", "rounds": 2, "epochs": 2}
    assert read_look(write_look(seen, tmp_path / "look.json")) == seen
    (tmp_path / "other.json").write_text('{"format": "mergelab-look/2"}')
    for name in ("other.json", "none.json"):
        with pytest.raises(CheckpointError, match=name):
            read_look(tmp_path / name)


def test_rounds_that_were_let_go_are_missed_by_name(zoo: Path, tmp_path: Path):
    train(recipe(zoo), tmp_path / "run", device="cpu")
    for part in ("landscape", "projection"):
        with pytest.raises(CheckpointError, match=r"has not kept its model after round 1; run it again with --keep-r"):
            look(tmp_path / "run", what=(part,), device="cpu")
    found = look(tmp_path / "run", limit=2, steps=2, device="cpu")
    assert set(found["left_out"]) == {"shares", "drift", "control", "landscape", "projection"}
    assert "--keep-rounds" in found["left_out"]["drift"] and found["orthogonality"]["drift"] == {}
    assert [row["round"] for row in found["orthogonality"]["rows"]] == [1, 2]
    assert [row["ends"] for row in found["barriers"]] == [["base", "ATM"]]
    with pytest.raises(CheckpointError, match="--beside one_shot"):
        look(tmp_path / "run", what=("shares",))


def test_models_without_a_plane_leave_the_rest_to_be_seen(kept: Path, tmp_path: Path):
    same = tmp_path / "same"
    shutil.copytree(kept, same)
    shutil.copy(same / "atm/rounds/00002/state.safetensors", same / "joint/rounds/00002/state.safetensors")
    found = look(same, limit=2, steps=2, device="cpu")
    assert "ATM and joint have the same weights" in found["left_out"]["landscape"] and len(found["barriers"]) == 4
    with pytest.raises(CheckpointError, match="the same weights"):
        look(same, what=("landscape",), limit=2, steps=2, device="cpu")


def test_what_cannot_be_looked_at_is_named(zoo: Path, kept: Path, tmp_path: Path):
    with pytest.raises(CheckpointError, match="no training run at nothing"):
        look(tmp_path / "nothing")
    with pytest.raises(RecipeError, match="Did you mean 'barriers'"):
        look(kept, what=("barrier",))
    with pytest.raises(RecipeError, match="Did you mean 'test'"):
        look(kept, split="tests")
    with pytest.raises(RecipeError, match="at least 2 steps"):
        look(kept, steps=1)
    both = tmp_path / "both"
    shutil.copytree(kept / "atm", both / "atm")
    train(recipe(zoo, train="joint", seed=1, budget={"rounds": 1}), both / "joint", device="cpu")
    with pytest.raises(CheckpointError, match="do not have the same seed"):
        look(both)
    lessons = tmp_path / "val"
    train(recipe(zoo, split="val", watch={"split": "held"}, budget={"rounds": 1}), lessons, device="cpu")
    with pytest.raises(RecipeError, match="were trained on"):
        look(lessons, what=("barriers",), split="val", device="cpu")


def test_the_verb_prints_tables_and_writes_what_it_found(
    kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "look.json"
    told = ["look", str(kept), "--limit", "2", "--steps", "2", "--device", "cpu", "--control"]
    assert cli.main([*told, "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "landscape 7 evaluations of 28 pictures; barriers 8 evaluations of 32 pictures" in printed.err
    for said in ("even split", "GTSRB 0.68 of 11", "mean |cos|", "experts from the joint model", "summed",
                 "grid of 2 × 2", "Grey – Colour", "one-shot merges", "losses on 2 held pictures a task"):  # fmt: skip
        assert said in printed.out, said
    assert read_look(out)["cost"]["landscape"] == {"evaluations": 7, "pictures": 28}
    assert cli.main([*told, "--out", str(out)]) == 2 and "--overwrite" in capsys.readouterr().err
    assert cli.main(["look", str(kept), "--what", "shares,orthogonality", "--json", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cost"] == {} and "landscape" not in found and found["shares"]["grey"]["even"] == 0.5
    assert cli.main(["look", str(tmp_path)]) == 2
    assert "no training run" in capsys.readouterr().err
