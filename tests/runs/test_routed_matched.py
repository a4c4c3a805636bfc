"""Routed models whose shared model needs data: statistics by the name of a kept set, learned, or collected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import routed_zoo
import torch

from mergelab.errors import DataNeededError, StatisticsError
from mergelab.recipe import Recipe
from mergelab.routing.recipe import TwinRecipe
from mergelab.runs import Bench, RoutedBench, matched
from mergelab.runs.data_bench import DataBench
from mergelab.runs.matched import Wish
from mergelab.tasks import load_suite

TASKS = ("colour", "grey")
WISH = Wish(TASKS, 8)


@pytest.fixture(scope="module", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory):
    patch = pytest.MonkeyPatch()
    patch.setenv("MERGELAB_HOME", str(tmp_path_factory.mktemp("home")))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def bench(root, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = routed_zoo.make(root, tmp_path_factory.mktemp("matched") / "tiny")
    return Bench(
        str(folder / "base"), {t: str(folder / "experts" / t) for t in TASKS}, load_suite(folder), device="cpu"
    )


@pytest.fixture(scope="module")
def routed(bench: Bench) -> RoutedBench:
    return RoutedBench(bench)


def twin(bench: Bench, method: str, **sections: Any) -> TwinRecipe:
    return routed_zoo.recipe(bench, merge_method=method, **sections)


def close(routed: Any, state: Any) -> None:
    for name, tensor in state.items():
        torch.testing.assert_close(routed.shared[name].float(), tensor.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("regmean", {}),
        ("fisher", {}),
        ("mats", {"init": {"merge_method": "task_arithmetic", "parameters": {"lambda": 0.3}},
                  "parameters": {"iterations": 4}}),
    ],
)  # fmt: skip
def test_the_shared_model_is_the_merge_of_kept_statistics(bench: Bench, routed: RoutedBench, method, more) -> None:
    bare = twin(bench, method, **more)
    with pytest.raises(DataNeededError, match="press Collect"):
        routed.build(bare)
    name = DataBench(bench).collect(bare.shared, WISH)["name"]
    assert matched.is_kept_name(name)
    recipe = bare.replace(shared=bare.shared.replace(statistics=name))
    made = routed.build(recipe)
    close(made, bench.merged(recipe.shared))
    plain = routed.build(twin(bench, "linear"))
    assert any(not torch.equal(made.shared[n], plain.shared[n]) for n in made.shared)
    assert made.settings["recipe"]["statistics"] == name
    assert "for the shared model:" in made.settings["data_used"] and "8 examples a task" in made.settings["data_used"]
    assert "for the shared model" not in plain.settings["data_used"]
    found = routed.evaluate(recipe, per_task=6)
    assert set(found["tasks"]) == set(TASKS)


def test_a_set_that_is_not_kept_here_is_named(bench: Bench, routed: RoutedBench) -> None:
    recipe = twin(bench, "regmean", statistics="statistics-0123456789ab")
    with pytest.raises(StatisticsError, match="'statistics-0123456789ab' is not kept on this machine"):
        routed.build(recipe)


def test_a_folder_of_statistics_works_too(bench: Bench, routed: RoutedBench) -> None:
    recipe = twin(bench, "regmean")
    name = DataBench(bench).collect(recipe.shared, WISH)["name"]
    folder = str(matched.folder_of(name))
    by_folder, by_name = (routed.build(recipe.replace(shared=recipe.shared.replace(statistics=text)))
                          for text in (folder, name))  # fmt: skip
    assert all(torch.equal(by_folder.shared[n], by_name.shared[n]) for n in by_name.shared)


@pytest.mark.parametrize(
    ("method", "parameters", "word"),
    [("adamerging", {"steps": 2, "examples": 6}, "press Learn"), ("regmean_pp", {"examples": 6}, "press Collect")],
)
def test_what_is_learned_or_collected_is_the_shared_model(bench, routed, method, parameters, word) -> None:
    recipe = twin(bench, method, parameters=parameters)
    with pytest.raises(DataNeededError, match=word):
        routed.build(recipe)
    data = DataBench(bench)
    shared: Recipe = recipe.shared
    data.learn(shared) if method == "adamerging" else data.collect(shared, WISH)
    made = routed.build(recipe)
    close(made, bench.merged(shared))
    assert "for the shared model: unlabelled" in made.settings["data_used"]


def test_the_router_tab_builds_from_a_kept_set(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As the page does it: the recipe of the Merge tab, the Build panel's values, building, measuring."""
    from mergelab.dashboard import drafts, router_views, router_work
    from mergelab.dashboard.lab import Lab
    from mergelab.dashboard.settings import Settings
    from mergelab.methods import get

    lab = Lab(Settings(temp=tmp_path))
    monkeypatch.setattr(lab, "open", lambda _: bench)
    selection = {"title": "Tiny", "zoo": None, "base": bench.base, "experts": bench.experts,
                 "suite": str(bench.suite.folder), "tuned": {}}  # fmt: skip
    method = get("regmean").describe()
    draft = drafts.fresh(method, selection)
    draft["statistics"] = lab.data(selection).collect(drafts.to_recipe(draft, method, selection), WISH)["name"]
    recipe = drafts.to_recipe(draft, method, selection)
    assert matched.is_kept_name(recipe.statistics)
    options = router_work.preset_options("default") | {"router": "centroid", "policy": "rank", "rank": 2}
    built = router_work.build(lab, selection, recipe, options, "RegMean", progress=None, stop=None)
    assert built["twin"]["statistics"] == recipe.statistics
    found = router_work.measure(lab, built, "router_argmax", "auto", 6)
    assert set(found["evaluation"]["tasks"]) == set(TASKS) == set(found["static"]["tasks"])
    assert "for the shared model: unlabelled" in found["evaluation"]["data_used"]
    assert "shared model: unlabelled, 8 examples" in router_views.badges(built, found["evaluation"])
    static = router_work.measure(lab, built, "router_argmax", "static", 6)["evaluation"]["data_used"]
    assert "for the shared model: unlabelled" in static and "validation items" not in static
    assert built["summary"]["data_used"].endswith(
        "for the shared model: unlabelled, 8 examples a task from the split val"
    )
