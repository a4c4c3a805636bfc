"""Building a zoo from a folder of .npz tasks and any base, end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import mergelab
from mergelab.errors import Cancelled, MergeLabError
from mergelab.models import build
from mergelab.progress import Stop
from mergelab.recipe import Recipe
from mergelab.tasks import evaluate, load_suite
from mergelab.zoo import ZooError, build_zoo, open_zoo
from mergelab.zoo.measure import Candidate

FEW = (Candidate("linear", "Weight average"), Candidate("task_arithmetic", "Task arithmetic", (0.3, 0.6)))


@pytest.fixture(scope="module")
def built(tiny_base: Path, tiny_tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("zoos") / "tiny"
    return build_zoo(tiny_tasks, str(tiny_base), out=out, epochs=30, rank=4, images=None, candidates=FEW)


def test_a_built_zoo_opens_and_every_part_loads(built: Path) -> None:
    zoo = open_zoo(built)
    assert (zoo.name, list(zoo.experts), zoo.tune) == ("tiny", ["shades", "tints"], "lora")
    base = mergelab.load(zoo.base)
    for source in zoo.experts.values():
        expert = mergelab.load(source)
        assert {n: i.shape for n, i in expert.infos.items()} == {n: i.shape for n, i in base.infos.items()}
        assert any(not torch.equal(expert[n].float(), base[n].float()) for n in base)
    suite = load_suite(built)
    assert [(t.name, t.seen, t.licence) for t in suite] == [("shades", True, "CC0"), ("tints", True, "CC0")]
    assert suite["shades"].classes == ("dark", "bright")


def test_experts_learned_their_tasks(built: Path) -> None:
    measured = open_zoo(built).measured["evaluations"]
    for task, found in measured["experts"].items():
        assert found["tasks"][task]["accuracy"] >= 0.9, task
        assert found["tasks"][task]["normalised"] == 1.0


def test_what_was_measured_is_what_evaluating_gives(built: Path) -> None:
    zoo = open_zoo(built)
    merge = zoo.measured["evaluations"]["merges"][1]
    recipe = Recipe.from_dict(merge["recipe"])
    assert recipe.merge_method == "task_arithmetic"
    assert recipe.parameters["lambda"] == zoo.tuned["task_arithmetic"]["lambda"]
    curve = {p["lambda"]: p["seen"] for p in merge["validation"]}
    assert curve[recipe.parameters["lambda"]] == max(curve.values())
    merged = mergelab.merge(
        "task_arithmetic", {t: zoo.experts[t] for t in zoo.experts}, base=zoo.base, lambda_=recipe.parameters["lambda"]
    )
    again = evaluate(zoo.base, built, state=merged).to_dict()
    for task, score in merge["evaluation"]["tasks"].items():
        assert again["tasks"][task]["accuracy"] == pytest.approx(score["accuracy"])


def test_recipes_name_this_zoo_wherever_it_lies(built: Path, tmp_path: Path) -> None:
    stored = json.loads((built / "measured.json").read_text())["evaluations"]["merges"][0]["recipe"]
    assert stored["base_model"] == "zoo:tiny/base"
    moved = built.rename(tmp_path / "elsewhere")
    try:
        recipe = open_zoo(moved).measured["evaluations"]["merges"][0]["recipe"]
        assert recipe["base_model"] == str(moved / "base")
        assert [m["model"] for m in recipe["models"]] == [str(moved / "experts" / t) for t in ("shades", "tints")]
        assert mergelab.load(recipe["models"][0]["model"]).nbytes > 0
    finally:
        moved.rename(built)


def test_predictions_are_of_the_whole_test_split(built: Path) -> None:
    with np.load(built / "predictions.npz", allow_pickle=False) as stored:
        assert set(stored) == {"base/shades", "base/tints", "expert/shades", "expert/tints"}
        for key in stored:
            assert stored[key].shape == (30,)


def test_the_card_says_what_was_done(built: Path) -> None:
    text = (built / "README.md").read_text()
    for words in ("LoRA rank 4", "`shades`", "made up", "Licence: CC0", "Task arithmetic", "chosen on"):
        assert words in text, words


@pytest.mark.parametrize("tune", ["full", "ia3"])
def test_other_ways_to_tune(tune: str, tiny_base: Path, tiny_tasks: Path, tmp_path: Path) -> None:
    out = build_zoo(tiny_tasks, str(tiny_base), out=tmp_path / tune, tune=tune, epochs=6, images=40, candidates=())
    zoo = open_zoo(out)
    assert zoo.tune == tune
    assert build(zoo.experts["tints"]).resolution == build(zoo.base).resolution == 28
    assert (out / "experts" / "shades" / "adapter_config.json").exists() == (tune == "ia3")
    base, expert = mergelab.load(zoo.base), mergelab.load(zoo.experts["tints"])
    assert set(expert) == set(base)
    changed = {n for n in base if not torch.equal(base[n].float(), expert[n].float())}
    assert "encoder.layer.0.mlp.fc2.weight" in changed
    assert ("layernorm.weight" in changed) == (tune == "full")
    # A full expert is a checkpoint of its own and must see pictures as its base does.
    prepare = out / "experts" / "shades" / "preprocessor_config.json"
    assert prepare.exists() == (tune == "full")
    assert tune != "full" or prepare.read_text() == (out / "base" / "preprocessor_config.json").read_text()


def test_a_clip_base_tunes_its_picture_side_only(tiny_tasks: Path, tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPModel

    sides = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**sides, "image_size": 28, "patch_size": 14}
    text = {**sides, "vocab_size": 64, "max_position_embeddings": 8}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=16))
    model.save_pretrained(tmp_path / "clip")
    out = build_zoo(tiny_tasks, str(tmp_path / "clip"), out=tmp_path / "z", epochs=6, images=40, rank=2, candidates=())
    base, expert = mergelab.load(out / "base"), mergelab.load(out / "experts" / "shades")
    changed = {n for n in base if not torch.equal(base[n].float(), expert[n].float())}
    assert changed
    assert all(n.startswith(("vision_model.", "visual_projection.")) for n in changed)


def test_stopping_leaves_nothing(tiny_base: Path, tiny_tasks: Path, tmp_path: Path) -> None:
    stop = Stop()

    def progress(done: int, total: int, text: str) -> None:
        if "training" in text:
            stop.set()

    with pytest.raises(Cancelled):
        build_zoo(tiny_tasks, str(tiny_base), out=tmp_path / "z", progress=progress, stop=stop, candidates=FEW)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_not_overwritten_unless_told(
    tiny_base: Path, tiny_tasks: Path, tmp_path: Path
) -> None:
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "precious").write_text("x")
    options = {"out": tmp_path / "z", "epochs": 1, "images": 12, "candidates": ()}
    with pytest.raises(MergeLabError, match="not empty"):
        build_zoo(tiny_tasks, str(tiny_base), **options)
    assert (tmp_path / "z" / "precious").exists()
    build_zoo(tiny_tasks, str(tiny_base), overwrite=True, **options)
    assert open_zoo(tmp_path / "z").experts
    assert [p.name for p in tmp_path.iterdir()] == ["z"]


def test_what_cannot_be_built_is_said(tiny_base: Path, tiny_tasks: Path, tmp_path: Path) -> None:
    with pytest.raises(MergeLabError, match="There is no suite"):
        build_zoo(tmp_path / "nowhere", str(tiny_base), out=tmp_path / "z")
    with pytest.raises(MergeLabError, match="nowhere"):
        build_zoo(tiny_tasks, "nowhere", out=tmp_path / "z")
    np.savez(
        tmp_path / "t.npz", x_test=np.zeros((4, 8, 8), np.uint8), y_test=np.array([0, 1, 0, 1]), classes=["a", "b"]
    )
    with pytest.raises(ZooError, match="no training pictures"):
        build_zoo(tmp_path, str(tiny_base), out=tmp_path / "z")
    assert not (tmp_path / "z").exists()
