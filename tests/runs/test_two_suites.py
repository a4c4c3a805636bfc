"""What is learned or collected on one suite, or on other tasks, is never taken for another's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from training.learn_zoo import moved_zoo

from mergelab.recipe import ModelEntry, Recipe
from mergelab.runs import Bench, judges, learnt, merged_through, solve_path
from mergelab.runs.choose import choose
from mergelab.tasks import load_suite

TASKS = ("colour", "grey")


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERGELAB_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> list[Bench]:
    """The same models on their own suite and on another of the same tasks."""
    zoo = moved_zoo(tmp_path_factory.mktemp("suites") / "tiny")
    other = tmp_path_factory.mktemp("suites") / "other"
    shutil.copytree(zoo, other)
    listing = json.loads((other / "suite" / "suite.json").read_text())
    (other / "suite" / "suite.json").write_text(json.dumps({**listing, "name": "other"}))
    experts = {t: str(zoo / "experts" / t) for t in TASKS}
    return [Bench(str(zoo / "base"), experts, load_suite(place), device="cpu") for place in (zoo, other)]


def recipe_of(bench: Bench, method: str, names: tuple[str, ...] = TASKS, **more: Any) -> Recipe:
    models = tuple(ModelEntry(bench.experts[t], name) for t, name in zip(TASKS, names, strict=True))
    return Recipe(method, models, base_model=bench.base, **more)


def test_learned_coefficients_belong_to_a_suite_and_to_tasks(benches) -> None:
    first, second = benches
    recipe = recipe_of(first, "adamerging", parameters={"steps": 1, "examples": 4})
    learnt.learned_for(first, recipe)
    assert learnt.kept_learned(first, recipe) is not None
    assert learnt.kept_learned(second, recipe) is None
    swapped = recipe_of(first, "adamerging", ("grey", "colour"), parameters={"steps": 1, "examples": 4})
    assert learnt.kept_learned(first, swapped) is None
    # the bench has one suite, which counts, whatever a recipe calls it
    assert learnt.kept_learned(first, recipe.replace(suite="tiny")) is not None


def test_a_grid_learns_on_the_suite_of_its_recipe_and_is_measured_on_the_bench_s(benches, monkeypatch) -> None:
    first, second = benches
    asked = []
    learn = judges.prepare
    monkeypatch.setattr(judges, "prepare", lambda *a, **k: asked.append(k["suite"].name) or learn(*a, **k))
    for suite in (str(first.suite.zoo), None):
        recipe = recipe_of(first, "adamerging", parameters={"steps": 1, "examples": 4}, suite=suite)
        found = choose(second, recipe, {"rate": [0.001]}, limit=4)
        assert found.suite == "other"
    assert asked == [first.suite.name, "other"]


def test_collections_through_merged_layers_belong_to_a_suite_and_to_tasks(benches) -> None:
    first, second = benches
    recipe = recipe_of(first, "regmean_pp", parameters={"examples": 4})
    swapped = recipe_of(first, "regmean_pp", ("grey", "colour"), parameters={"examples": 4})
    folders = {merged_through.through_folder(bench, one) for bench in (first, second) for one in (recipe, swapped)}
    assert len(folders) == 4
    assert merged_through.through_folder(first, recipe.replace(suite="tiny")) in folders


def test_paths_are_not_found_by_a_bench_that_came_later(benches, monkeypatch) -> None:
    """Python gives the id of what is gone to something new."""
    first, second = benches
    monkeypatch.setattr(solve_path, "_kept", type(solve_path._kept)())
    monkeypatch.setattr(solve_path, "id", lambda _: 1, raising=False)
    recipe = recipe_of(first, "mats", parameters={"objective": "identity", "iterations": 2}, init="base")
    mine = solve_path.solve_path(first, recipe, (2,), limit=5)
    assert solve_path.snapshot_of(first, recipe) is not None and solve_path.snapshot_of(second, recipe) is None
    assert solve_path.solve_path(second, recipe, (2,), limit=5) is not mine
    assert solve_path.solve_path(first, recipe, (2,), limit=5) is mine
