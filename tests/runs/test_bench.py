"""The bench on the starter zoo: what it answers must be what the slow way answers."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import mergelab
from mergelab.errors import TaskError
from mergelab.recipe import ModelEntry, Recipe
from mergelab.runs import Bench, custom_bench, first_screen, open_bench
from mergelab.tasks import load_suite

TASKS = ("mnist", "fashion")


@pytest.fixture(scope="module")
def bench() -> Bench:
    """Two of the starter's experts, so that the test stays quick."""
    opened = open_bench("starter")
    return Bench(opened.base, {task: opened.experts[task] for task in TASKS}, load_suite("starter"), device="cpu")


def recipe(bench: Bench, coefficient: float, **changes: object) -> Recipe:
    entries = tuple(ModelEntry(source, name=name) for name, source in bench.experts.items())
    made = Recipe("task_arithmetic", entries, base_model=bench.base, parameters={"lambda": coefficient})
    return made.replace(**changes) if changes else made


def test_a_merge_is_base_plus_coefficient_times_deltas(bench: Bench):
    base, *experts = (mergelab.load(source) for source in (bench.base, *bench.experts.values()))
    merged = bench.merged(recipe(bench, 0.4))
    assert set(merged) == set(base)
    for name in base:
        start = base[name].double()
        expected = start + 0.4 * sum(expert[name].double() - start for expert in experts)
        torch.testing.assert_close(merged[name].double(), expected, atol=1e-6, rtol=1e-6)


def test_a_changed_value_changes_the_merge_and_going_back_gives_the_same(bench: Bench):
    one, two = bench.merged(recipe(bench, 0.2)), bench.merged(recipe(bench, 0.6))
    name = "encoder.layer.0.mlp.fc1.weight"
    assert not torch.equal(one[name], two[name])
    assert bench.merged(recipe(bench, 0.2)) is one  # from the cache, by the recipe's hash


def test_another_method_and_weights_by_model_reach_the_merge(bench: Bench):
    entries = (ModelEntry(bench.experts["mnist"], parameters={"weight": 1.0}),
               ModelEntry(bench.experts["fashion"], parameters={"weight": 0.0}))  # fmt: skip
    alone = bench.merged(recipe(bench, 1.0, models=entries))
    expert = mergelab.load(bench.experts["mnist"])
    for name in expert:
        torch.testing.assert_close(alone[name], expert[name].float(), atol=1e-6, rtol=0)
    average = bench.merged(Recipe("linear", recipe(bench, 1.0).models, base_model=bench.base))
    other = mergelab.load(bench.experts["fashion"])
    name = "encoder.layer.3.mlp.fc2.weight"
    torch.testing.assert_close(average[name], (expert[name] + other[name]) / 2, atol=1e-6, rtol=0)


def test_references_on_a_subset_are_what_evaluating_on_it_gives(bench: Bench):
    kept = bench.references(10)["experts"].tasks["mnist"]
    live = mergelab.evaluate(bench.experts["mnist"], "starter", tasks=["mnist"], limit=10, device="cpu").tasks["mnist"]
    assert (kept.n, kept.accuracy) == (live.n, live.accuracy) == (10, kept.accuracy)
    assert live.normalised == 1.0


def test_a_prediction_has_three_models_that_disagree(bench: Bench):
    index, picture, label = bench.samples("mnist")[0]
    task = bench.task("mnist")
    assert np.array_equal(task.split("test")[0][index].numpy(), picture)
    found = bench.predict(recipe(bench, 0.4), "mnist", picture[None])
    assert [prediction.model for prediction in found] == ["base", "expert", "merged"]
    for prediction in found:
        assert prediction.classes == tuple(task.classes) and label in prediction.classes
        assert sum(prediction.probabilities) == pytest.approx(1, abs=1e-4)
    assert len({prediction.probabilities for prediction in found}) == 3


def test_the_download_is_a_checkpoint_that_loads_as_the_merge(bench: Bench, tmp_path: Path):
    packed = bench.export(recipe(bench, 0.4), folder=tmp_path)
    assert [file.name for file in packed.parent.iterdir()] == [packed.name], "only the packed file is left"
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(tmp_path / "unpacked")
    (folder,) = (tmp_path / "unpacked").iterdir()
    merged = bench.merged(recipe(bench, 0.4))
    with mergelab.load(folder) as loaded:
        for name, tensor in merged.items():
            torch.testing.assert_close(loaded[name].float(), tensor, atol=2e-3, rtol=2e-3)  # float16, as the base


def test_a_bench_without_a_suite_merges_and_says_what_it_cannot_do(bench: Bench):
    bare = custom_bench(bench.base, bench.experts, device="cpu")
    assert bare.merged(recipe(bench, 0.4))
    with pytest.raises(TaskError, match="suite"):
        bare.evaluate(recipe(bench, 0.4))
    with pytest.raises(TaskError, match="mnist"):
        bench.task("mnits")


def test_the_first_screen_needs_no_weights_and_shows_three_models():
    screen = first_screen("starter")
    assert screen.recipe.merge_method == "task_arithmetic"
    seen = {name for name, task in screen.merged["tasks"].items() if task["seen"]}
    assert seen == set(screen.experts) and seen <= set(screen.base["tasks"])
    for sample in screen.samples:
        for who in ("base", "expert", "merged"):
            assert sum(sample[who]) == pytest.approx(1, abs=0.01)
