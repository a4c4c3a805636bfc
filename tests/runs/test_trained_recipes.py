"""From a recipe to learned coefficients and back: what is read, what is written, what repeats, what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training.learn_zoo import learned_recipe, moved_zoo

from mergelab import load
from mergelab.cli import main
from mergelab.engine import merge_to_folder, merge_to_memory
from mergelab.errors import Cancelled, MergeLabError, MethodError, RecipeError, TaskError
from mergelab.progress import Stop
from mergelab.recipe import ModelEntry, Recipe
from mergelab.runs.trained import LEARNED_FILE, Learned, learned_files, planned, prepare


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return moved_zoo(tmp_path_factory.mktemp("learned") / "tiny")


@pytest.fixture(scope="module")
def learned(zoo: Path) -> Learned:
    return prepare(learned_recipe(zoo), device="cpu")


def test_tasks_are_found_by_the_models_names(zoo: Path, learned: Learned) -> None:
    assert learned.models == ("colour", "grey")
    assert learned.suite == "tiny" and not learned.transductive
    assert learned.data_used == "60 unlabelled val pictures a task of colour, grey"
    assert learned.samples == 2 * 2 * 4
    assert set(learned.weights) == {"colour", "grey", "base"}
    merged = set(load(zoo / "base")) - {"embeddings.mask_token"}
    assert merged <= set(learned.coefficients)
    assert any(row != (0.3, 0.3) for row in learned.coefficients.values())


@pytest.mark.parametrize("used", ["val", "test"])
def test_only_the_split_that_was_asked_for_is_looked_at(zoo: Path, learned: Learned, tmp_path: Path, used: str) -> None:
    """Noise in place of all other pictures, and of all labels, changes nothing; in place of these it does."""

    def poisoned(victims: set[str], name: str) -> Learned:
        other = tmp_path / name
        shutil.copytree(zoo, other)
        for pack in (other / "suite").glob("*.npz"):
            with np.load(pack) as stored:
                arrays = {key: stored[key] for key in stored.files}
            rng = np.random.RandomState(7)
            for key in victims & set(arrays):
                arrays[key] = rng.randint(0, 2 if key[0] == "y" else 256, arrays[key].shape).astype(np.uint8)
            np.savez_compressed(pack, **arrays)
        recipe = learned_recipe(zoo, inputs=used, examples=20)
        return prepare(recipe, suite=str(other), device="cpu")

    plain = prepare(learned_recipe(zoo, inputs=used, examples=20), device="cpu")
    splits = {"train", "val", "test"}
    untouched = {f"x_{split}" for split in splits - {used}} | {f"y_{split}" for split in splits}
    same = poisoned(untouched, "others")
    assert same.coefficients == plain.coefficients and same.entropy == plain.entropy
    assert poisoned({f"x_{used}"}, "these").coefficients != plain.coefficients
    assert plain.transductive == (used == "test")
    assert ("transductive" in plain.data_used) == (used == "test")
    assert any("transductive" in finding for finding in plain.findings) == (used == "test")


def test_the_file_beside_the_weights_makes_the_same_merge_without_learning(
    zoo: Path, learned: Learned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = learned_recipe(zoo)
    out = merge_to_folder(planned(recipe, learned), tmp_path / "out", extra=learned_files(learned), device="cpu")
    assert json.loads((out / LEARNED_FILE).read_text())["format"] == "mergelab-learned/1"
    monkeypatch.setattr("mergelab.runs.trained.learn", None)  # it would fail
    for pointer in (out, out / LEARNED_FILE):
        again = prepare(recipe.replace(suite=None, learned=str(pointer)))
        assert again == prepare(recipe, learned=pointer)
        repeated = merge_to_memory(planned(recipe, again), device="cpu")
        with load(out) as stored:
            assert set(stored) == set(repeated)
            assert all(torch.equal(stored[name], repeated[name]) for name in stored)


def test_everything_survives_the_file(learned: Learned, tmp_path: Path) -> None:
    (tmp_path / LEARNED_FILE).write_text(learned.to_json())
    again = Learned.read(tmp_path)
    assert again.coefficients == learned.coefficients  # to the bit
    assert again.rows == learned.rows and again.classes == learned.classes and again.settings == learned.settings
    torch.testing.assert_close(torch.tensor(again.history[-1][1]), torch.tensor(learned.history[-1][1]))
    assert torch.tensor(again.entropy).allclose(torch.tensor(learned.entropy), rtol=1e-5)


def test_models_in_another_order_get_their_own_coefficients(zoo: Path, learned: Learned) -> None:
    recipe = learned_recipe(zoo)
    turned = recipe.replace(models=tuple(reversed(recipe.models)))
    one, two = (merge_to_memory(planned(r, learned), device="cpu") for r in (recipe, turned))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-6, atol=1e-6)


def test_coefficients_of_other_models_are_refused(zoo: Path, learned: Learned, tmp_path: Path) -> None:
    recipe = learned_recipe(zoo)
    cases: list[tuple[Recipe, Learned, str]] = [
        (recipe.replace(models=recipe.models[:1]), learned, "learned for the models colour, grey, but colour are"),
        (recipe.replace(parameters={"split": "ties"}), learned, "with split 'none', but the recipe says 'ties'"),
        (recipe, replace(learned, coefficients={}), "have none for"),
        (recipe, replace(learned, weights={"grey": "f" * 64}), "other weights of 'grey' .hash ffffffffffff"),
    ]  # fmt: skip
    for given, coefficients, message in cases:
        with pytest.raises(MethodError, match=message):
            planned(given, coefficients)
    with pytest.raises(MethodError, match="There are no learned coefficients at"):
        prepare(recipe, learned=tmp_path / "nowhere")
    for text, message in [("{", "not valid JSON"), ("[]", "JSON object"), ('{"format": "x"}', "the format is 'x'")]:
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(MethodError, match=message):
            prepare(recipe, learned=tmp_path / "bad.json")
    damaged: dict[str, Any] = learned.to_dict()
    damaged["coefficients"]["layernorm.weight"] = [1.0]
    (tmp_path / "bad.json").write_text(json.dumps(damaged))
    with pytest.raises(MethodError, match=r"bad\.json is damaged .1 finite coefficients expected for 2 models"):
        prepare(recipe, learned=tmp_path / "bad.json")


def test_what_cannot_be_learned_is_refused(zoo: Path) -> None:
    recipe = learned_recipe(zoo)
    with pytest.raises(RecipeError, match="the recipe names no 'suite'"):
        prepare(recipe.replace(suite=None))
    entries = (recipe.models[0], ModelEntry(recipe.models[1].model, "gray"))
    with pytest.raises(TaskError, match=r"'gray' has no task of its name in the suite tiny.*Did you mean 'grey'"):
        prepare(recipe.replace(models=entries))
    with pytest.raises(MethodError, match="'linear' has nothing to learn"):
        prepare(Recipe("linear", recipe.models))
    headless = (recipe.models[0], ModelEntry(recipe.models[1].model, "stripes"))
    with pytest.raises(TaskError, match="stripes has no trained head in the suite tiny"):
        prepare(recipe.replace(models=headless))


def test_a_task_without_pictures_of_the_split_is_named(zoo: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(zoo, other)
    pack = other / "suite" / "grey.npz"
    with np.load(pack) as stored:
        kept = {key: stored[key] for key in stored.files if "test" in key}
    np.savez_compressed(pack, **kept)
    with pytest.raises(TaskError, match="grey has no val pictures"):
        prepare(learned_recipe(zoo), suite=str(other), device="cpu")


def test_stop_reaches_the_learning(zoo: Path) -> None:
    stop = Stop()
    stop.set()
    with pytest.raises(Cancelled):
        prepare(learned_recipe(zoo), device="cpu", stop=stop)


def test_the_command_line_learns_and_merges(zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = learned_recipe(zoo, inputs="test", steps=1)
    (tmp_path / "ada.yaml").write_text(recipe.to_yaml())
    out = tmp_path / "out"
    assert main(["merge", str(tmp_path / "ada.yaml"), "--out", str(out), "--device", "cpu"]) == 0
    assert "transductive" in "".join(capsys.readouterr())
    assert Learned.read(out).transductive
    assert "transductive" in (out / "README.md").read_text()
    with pytest.raises(MergeLabError, match="learned coefficients"):
        merge_to_memory(_bare(recipe))


def test_resident_models_are_merged_with_the_coefficients_given_last(zoo: Path, learned: Learned) -> None:
    """In memory the last merged task vector is kept between merges; another run's coefficients are another one."""
    state = {source: load(dict(load(source))) for source in (str(zoo / "base"), *_sources(zoo))}
    recipe = learned_recipe(zoo)
    other = replace(learned, coefficients=dict.fromkeys(learned.coefficients, (1.0, 0.0)), weights={})
    merge_to_memory(planned(recipe, replace(learned, weights={}), load=lambda source: state[source]), device="cpu")
    found = merge_to_memory(planned(recipe, other, load=lambda source: state[source]), device="cpu")
    expected = load(_sources(zoo)[0])
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-6)


def _sources(zoo: Path) -> list[str]:
    return [entry.model for entry in learned_recipe(zoo).models]


def _bare(recipe: Recipe) -> Any:
    from mergelab.engine import plan_recipe

    return plan_recipe(recipe)
