"""Evaluation on a zoo whose accuracies are known by construction."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_zoo import N

from mergelab.checkpoints import load
from mergelab.errors import Cancelled, CheckpointError, TaskError
from mergelab.models import build
from mergelab.progress import Stop
from mergelab.tasks import Head, evaluate, heads_for, load_suite, subset_indices


@pytest.fixture(scope="module")
def model(zoo):
    return build(str(zoo / "base"), device="cpu")


@pytest.fixture
def copy(zoo, tmp_path):
    return shutil.copytree(zoo, tmp_path / "tiny")


def test_the_json_contract_and_the_numbers(zoo):
    found = evaluate(str(zoo / "base"), zoo, device="cpu").to_dict()
    assert list(found) == ["suite", "source", "tasks", "seen", "unseen", "data_used", "seconds"]
    assert (found["suite"], found["source"]) == ("tiny", str(zoo / "base"))
    assert set(found["tasks"]["grey"]) == {"seen", "n", "accuracy", "interval", "normalised"}
    grey, colour, stripes = (found["tasks"][name] for name in ("grey", "colour", "stripes"))
    assert (grey["seen"], grey["n"], grey["accuracy"], grey["normalised"]) == (True, N, 1.0, 1.0)
    # 40 of 60 right; the expert is right on 45 of 60
    assert colour["accuracy"] == pytest.approx(40 / 60)
    assert colour["normalised"] == pytest.approx(40 / 45)
    assert colour["interval"][0] < 40 / 60 < colour["interval"][1]
    assert (stripes["seen"], stripes["accuracy"], stripes["normalised"]) == (False, 1.0, None)
    assert found["seen"]["accuracy"] == pytest.approx((1 + 40 / 60) / 2)
    assert found["seen"]["normalised"] == pytest.approx((1 + 40 / 45) / 2)  # mean of ratios
    assert found["unseen"] == {"accuracy": 1.0, "normalised": None}
    assert found["data_used"] == (
        "heads trained with labels of grey, colour; 20 labelled training images a class of stripes"
    )
    assert found["seconds"] > 0
    json.dumps(found, allow_nan=False)


def test_a_limit_takes_a_fixed_balanced_subset_and_normalises_on_it(zoo, model):
    suite = load_suite(zoo)
    found = evaluate(model, suite, limit=20)
    task = suite["colour"]
    places = subset_indices(task, "test", 20)
    labels = task.split("test")[1][places]
    kept = np.load(zoo / "predictions.npz")
    right = torch.from_numpy(kept["base/colour"].astype(np.int64))[places] == labels
    expert = torch.from_numpy(kept["expert/colour"].astype(np.int64))[places] == labels
    score = found.tasks["colour"]
    assert score.n == 20
    assert score.accuracy == pytest.approx(right.double().mean().item())
    assert score.normalised == pytest.approx(right.double().mean().item() / expert.double().mean().item())
    assert evaluate(model, suite, limit=20).to_dict()["tasks"] == found.to_dict()["tasks"]


def test_every_way_of_naming_a_model_agrees(zoo, model):
    expected = evaluate(model, zoo).to_dict()["tasks"]
    checkpoint = load(str(zoo / "base"))
    state = {name: checkpoint[name] for name in checkpoint}
    zeros = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    model_of_zeros = build(str(zoo / "base"), device="cpu")
    model_of_zeros.load_state(zeros)
    for given in (checkpoint, (model, state), (model_of_zeros, checkpoint), (model_of_zeros, state)):
        assert evaluate(given, zoo, device="cpu").to_dict()["tasks"] == expected
    assert evaluate(model_of_zeros, zoo, state=state).to_dict()["tasks"] == expected
    assert evaluate(model_of_zeros, zoo).to_dict()["tasks"] != expected  # its own weights are back


def test_labels_permuted_means_never_right(copy):
    with np.load(copy / "suite" / "grey.npz") as data:
        arrays = dict(data)
    arrays["y_test"] = (arrays["y_test"] + 1) % 3
    np.savez_compressed(copy / "suite" / "grey.npz", **arrays)
    score = evaluate(str(copy / "base"), copy, tasks=["grey"], device="cpu").tasks["grey"]
    assert score.accuracy == 0
    assert score.interval == (0.0, pytest.approx(1 - 0.025 ** (1 / N)))
    assert score.normalised is None  # the kept predictions are now never right either


def test_validation_split_has_no_normaliser(zoo, model):
    found = evaluate(model, zoo, split="val", unseen=False)
    assert found.tasks["colour"].accuracy == 1.0
    assert found.tasks["colour"].normalised is None
    assert found.seen.normalised is None
    assert list(found.tasks) == ["grey", "colour"]


def test_given_heads_and_their_mistakes(zoo, model):
    heads = heads_for(load_suite(zoo))
    swapped = {"grey": Head(heads["grey"].weight.flip(0), heads["grey"].bias.flip(0)), "colour": heads["colour"]}
    found = evaluate(model, zoo, heads=swapped, unseen=False)
    labels = load_suite(zoo)["grey"].split("test")[1]
    assert found.tasks["grey"].accuracy == pytest.approx((labels == 1).double().mean().item())  # only the middle stays
    assert found.data_used == "heads trained with labels of colour; heads given for grey"
    with pytest.raises(TaskError, match="no head for the task colour"):
        evaluate(model, zoo, heads={"grey": heads["grey"]}, unseen=False)
    with pytest.raises(TaskError, match="head of grey has 4 classes, the task has 3"):
        evaluate(model, zoo, heads={**heads, "grey": heads["colour"]})
    with pytest.raises(TaskError, match=r"takes features of width 10, .* gives 24"):
        evaluate(model, zoo, heads={**heads, "grey": Head(torch.zeros(3, 10))})
    with pytest.raises(TaskError, match="heads must be"):
        evaluate(model, zoo, heads="best")


def test_class_means_on_request(zoo, model):
    found = evaluate(model, zoo, heads="class mean", tasks=["grey"], shots=5)
    assert found.tasks["grey"].head == "class mean"
    assert found.data_used == "5 labelled training images a class of all tasks"


def test_missing_and_damaged_parts_of_a_zoo(copy, model):
    shutil.rmtree(copy / "experts" / "colour")
    with pytest.raises(TaskError, match=r"colour has no head.safetensors"):
        evaluate(model, copy)
    (copy / "experts" / "colour").mkdir()
    save_file({"w": torch.zeros(4, 24)}, copy / "experts" / "colour" / "head.safetensors")
    with pytest.raises(TaskError, match="must hold 'weight'"):
        evaluate(model, copy)
    save_file({"weight": torch.full((4, 24), float("nan"))}, copy / "experts" / "colour" / "head.safetensors")
    with pytest.raises(TaskError, match="NaN"):
        evaluate(model, copy)
    (copy / "experts" / "colour" / "head.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(TaskError, match=r"colour/head.safetensors cannot be read"):
        evaluate(model, copy)
    listing = json.loads((copy / "zoo.json").read_text())
    listing["experts"] = {"grey": "experts/grey"}
    (copy / "zoo.json").write_text(json.dumps(listing))
    with pytest.raises(TaskError, match="no head for its task colour"):
        evaluate(model, copy)
    listing["experts"]["grey"] = "../../grey"
    (copy / "zoo.json").write_text(json.dumps(listing))
    with pytest.raises(TaskError, match="not a place inside"):
        evaluate(model, copy)


def test_predictions_of_other_items_are_refused(copy, model):
    np.savez_compressed(copy / "predictions.npz", **{"expert/grey": np.zeros(7, np.uint8)})
    with pytest.raises(TaskError, match="has 7 predictions, the test split of grey has 60"):
        evaluate(model, copy)
    (copy / "predictions.npz").unlink()
    assert evaluate(model, copy).seen.normalised is None


def test_a_model_of_another_width_is_told_so(zoo, tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    Dinov2Model(Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=28)).save_pretrained(
        tmp_path / "small"
    )
    with pytest.raises(TaskError, match="takes features of width 24, small gives 8"):
        evaluate(str(tmp_path / "small"), zoo, device="cpu")


def test_a_folder_of_bare_packs_is_measured_by_class_means(tmp_path, zoo):
    from tiny_zoo import stripes

    np.savez(tmp_path / "stripes.npz", **stripes(), classes=np.array(["dark", "bright"]))
    found = evaluate(str(zoo / "base"), tmp_path, device="cpu")
    assert found.tasks["stripes"].accuracy == 1.0
    assert found.seen.accuracy is None
    with pytest.raises(TaskError, match="measure test or val"):
        evaluate(str(zoo / "base"), tmp_path, split="train", device="cpu")


def test_mistakes_in_what_is_asked(zoo, model):
    with pytest.raises(TaskError, match=r"no task 'gray'. Did you mean 'grey'"):
        evaluate(model, zoo, tasks=["gray"])
    with pytest.raises(TaskError, match=r"'tets' is not a split. Did you mean 'test'"):
        evaluate(model, zoo, split="tets")
    with pytest.raises(TaskError, match="no task to measure"):
        evaluate(model, zoo, tasks=["stripes"], unseen=False)
    with pytest.raises(TaskError, match="There is no suite"):
        evaluate(model, "nowhere")
    with pytest.raises(CheckpointError, match="missing"):
        evaluate(model, zoo, state={"a": torch.zeros(1)})


def test_progress_counts_pictures_and_stop_stops(zoo, model):
    seen = []
    evaluate(model, zoo, batch=50, progress=lambda done, total, _: seen.append((done, total)))
    assert seen[-1] == (2 * N + 30 + 26,) * 2  # two tasks, stripes, and its support: 13 a class are left for training
    stop = Stop()
    stop.set()
    with pytest.raises(Cancelled):
        evaluate(model, zoo, stop=stop)


def test_table_has_a_row_a_task_and_the_means(zoo, model):
    rows = evaluate(model, zoo).table()
    assert [row["task"] for row in rows] == ["grey", "colour", "stripes", "mean seen", "mean unseen"]
    assert rows[3]["n"] == 2 * N
    assert len({tuple(row) for row in rows}) == 1


def test_heads_are_those_on_disk(zoo):
    heads = heads_for(load_suite(zoo))
    stored = load_file(zoo / "experts" / "grey" / "head.safetensors")
    assert torch.equal(heads["grey"].weight, stored["weight"])
    assert torch.equal(heads["grey"].bias, stored["bias"])
    assert (heads["grey"].kind, sorted(heads)) == ("trained", ["colour", "grey"])
