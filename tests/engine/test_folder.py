"""A merged folder: whole, with its recipe, card, configuration and tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest_engine import state

from mergelab.checkpoints import load
from mergelab.engine import merge_to_folder, merge_to_memory, plan, plan_recipe
from mergelab.errors import Cancelled, CheckpointError, MethodError
from mergelab.progress import Stop
from mergelab.recipe import Recipe


@pytest.fixture
def recipe(zoo: dict[str, str]) -> Recipe:
    return Recipe(
        "ties", (zoo["ant"], zoo["bee"]), base_model=zoo["base"], out_dtype="bfloat16", title="Two | *tiny* <b>"
    )


def test_the_folder_holds_the_merge_and_how_it_was_made(recipe: Recipe, zoo: dict[str, str], tmp_path: Path) -> None:
    base = Path(zoo["base"])
    (base / "tokenizer.json").write_text("{}")
    (base / "preprocessor_config.json").write_text('{"size": 8}')
    (base / "modeling_evil.py").write_text("raise SystemExit")
    made = plan_recipe(recipe)
    folder = merge_to_folder(made, tmp_path / "out")
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "config.json", "mergelab_recipe.yaml", "model.safetensors",
        "preprocessor_config.json", "tokenizer.json",
    ]  # fmt: skip
    expected = merge_to_memory(made)
    with load(folder) as found:
        assert set(found) == set(expected)
        assert all(found[name].equal(tensor) and found[name].dtype == tensor.dtype for name, tensor in expected.items())
        assert Recipe.from_json(found.metadata["mergelab_recipe"]) == recipe
    assert Recipe.read(folder / "mergelab_recipe.yaml") == recipe
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "bfloat16"
    card = (folder / "README.md").read_text()
    assert recipe.hash in card
    assert recipe.to_yaml() in card
    assert "<b>" not in card.split("## Recipe")[0].replace("\\<b\\>", "")


def test_the_written_recipe_makes_the_same_bits(recipe: Recipe, tmp_path: Path) -> None:
    first = merge_to_folder(plan_recipe(recipe), tmp_path / "one")
    again = merge_to_folder(plan_recipe(Recipe.read(first / "mergelab_recipe.yaml")), tmp_path / "two", threads=1)
    assert (first / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()


def test_without_a_recipe_one_is_written_out_in_full(zoo: dict[str, str], tmp_path: Path) -> None:
    made = plan("breadcrumbs", {"x": zoo["ant"], "y": zoo["bee"]}, zoo["base"], {"weight": [1.0, 0.5]}, seed=3)
    written = Recipe.read(merge_to_folder(made, tmp_path / "out") / "mergelab_recipe.yaml")
    assert written.names == ("x", "y")
    assert dict(written.models[1].parameters) == {"weight": 0.5}
    assert dict(written.parameters) == {"drop_low": 0.85, "drop_high": 0.007, "lambda": 0.3}
    assert written.seed == 3
    found = merge_to_memory(plan_recipe(written))
    assert all(found[name].equal(tensor) for name, tensor in merge_to_memory(made).items())


def test_shards_and_ties(tmp_path: Path) -> None:
    base = state()
    base["tied"] = base["norm"]
    expert = state(1, 0.1)
    expert["tied"] = expert["norm"]
    made = plan("task_arithmetic", {"ant": expert}, base)
    folder = merge_to_folder(made, tmp_path / "out", max_shard_bytes=100)
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    with load(folder) as found:
        assert found["tied"].equal(found["norm"])
        assert set(found.aliases.items()) == {("tied", "norm")}


def test_a_folder_in_use_is_kept(recipe: Recipe, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("x")
    with pytest.raises(CheckpointError, match="not empty"):
        merge_to_folder(plan_recipe(recipe), out)
    merge_to_folder(plan_recipe(recipe), out, overwrite=True)
    assert not (out / "mine.txt").exists()


def test_failing_and_stopping_leave_nothing(recipe: Recipe, zoo: dict[str, str], store: object, tmp_path: Path) -> None:
    bad = state(3, 0.1)
    bad["norm"][1] = float("nan")
    before = set(tmp_path.iterdir())
    with pytest.raises(MethodError, match="NaN"):
        merge_to_folder(plan("ties", {"bad": bad}, zoo["base"]), tmp_path / "out")
    stop = Stop()

    def progress(done: int, total: int, text: str) -> None:
        if done == total - 1:
            stop.set()

    with pytest.raises(Cancelled):
        merge_to_folder(plan_recipe(recipe), tmp_path / "out", progress=progress, stop=stop)
    assert set(tmp_path.iterdir()) == before


def test_configuration_says_nothing_of_mixed_dtypes(tmp_path: Path) -> None:
    base = {**state(), "half": torch.ones(2, dtype=torch.float16)}
    expert = {**state(1, 0.1), "half": torch.ones(2, dtype=torch.float16)}
    folder = merge_to_folder(plan("task_arithmetic", [expert], load(base, name="b")), tmp_path / "out")
    assert not (folder / "config.json").exists()
