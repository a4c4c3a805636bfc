"""Selection on validation: the grid's best, from validation data alone, with all that led to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import routed_zoo
import torch
from safetensors.torch import save_file
from torch import Tensor

from mergelab import cli
from mergelab.checkpoints import load
from mergelab.engine import merge_to_memory, plan_recipe
from mergelab.errors import Cancelled, CheckpointError, MethodError, RecipeError, StatisticsError, TaskError
from mergelab.progress import Stop
from mergelab.recipe import ModelEntry, Recipe
from mergelab.runs import Bench
from mergelab.runs import choose as chooser
from mergelab.runs.choose import bench_for, choose, with_values
from mergelab.runs.trained import planned, prepare
from mergelab.statistics import Block, TaskStatistics, read, read_folder, write
from mergelab.tasks import evaluate, load_suite


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """Base 0, experts 1 and 3: task arithmetic gives 4 lambda everywhere."""
    for name, value in (("base", 0.0), ("one", 1.0), ("two", 3.0)):
        save_file({"w": torch.full((2, 3), value)}, tmp_path / f"{name}.safetensors")
    models = tuple(ModelEntry(str(tmp_path / f"{name}.safetensors")) for name in ("one", "two"))
    return Recipe("task_arithmetic", models, base_model=str(tmp_path / "base.safetensors"), title="Mine")


def near(target: float) -> Any:
    """A validation function whose two tasks are best where the weights are ``target``."""

    def measure(state: Mapping[str, Tensor]) -> dict[str, float]:
        away = abs(round(float(state["w"].mean()), 5) - target)
        return {"a": 1 - away / 10, "b": 1 - away / 20}

    return measure


def test_the_best_point_is_taken_and_every_point_is_kept(recipe: Recipe):
    found = choose(near(1.6), recipe, {"lambda": [0.1, 0.3, 0.5]})
    assert found.parameters == {"lambda": 0.3} and found.best == 1
    assert found.recipe == recipe.replace(parameters={"lambda": 0.3})
    assert [dict(point.parameters) for point in found.scores] == [{"lambda": v} for v in (0.1, 0.3, 0.5)]
    for point, weights in zip(found.scores, (0.4, 1.2, 2.0), strict=True):
        expected = {"a": 1 - abs(weights - 1.6) / 10, "b": 1 - abs(weights - 1.6) / 20}
        assert dict(point.tasks) == pytest.approx(expected, abs=1e-6)
        assert point.accuracy == pytest.approx(sum(expected.values()) / 2, abs=1e-6)
    assert found.split == "val" and not found.oracle and found.tasks == ("a", "b") and found.grid == {
        "lambda": (0.1, 0.3, 0.5)
    }  # fmt: skip
    assert found.why == (
        "lambda = 0.3 has the highest mean accuracy on val, 97.00 % over 2 tasks, of 3 grid points; it is the first "
        "of 2 equal ones. At lambda = 0.1 it is 91.00 %."
    )


def test_equal_points_go_to_the_first_in_the_grids_order(recipe: Recipe):
    for values, expected in (([0.3, 0.5], 0.3), ([0.5, 0.3], 0.5)):
        assert choose(near(1.6), recipe, {"lambda": values}).parameters == {"lambda": expected}


def test_several_parameters_make_a_product(recipe: Recipe):
    found = choose(near(1.6), recipe, {"lambda_": [0.5, 1], "weight": [0.2, 0.4]})
    assert list(found.grid) == ["lambda", "weight"]
    assert [tuple(point.parameters.values()) for point in found.scores] == [(0.5, 0.2), (0.5, 0.4), (1, 0.2), (1, 0.4)]
    assert found.parameters == {"lambda": 1.0, "weight": 0.4}


def test_values_that_are_not_in_the_grid_stay(recipe: Recipe):
    found = choose(near(0), recipe.replace(parameters={"lambda": 0.9}, seed=5), {"weight": [1, 0.5]})
    assert found.recipe.parameters == {"lambda": 0.9, "weight": 0.5} and found.recipe.seed == 5


def test_it_is_plain_data(recipe: Recipe):
    found = choose(near(1.6), recipe, {"lambda": [0.1, 0.3]}, limit=7)
    said = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert set(said) == {
        "recipe", "parameters", "split", "oracle", "limit", "suite", "tasks", "items", "seeds", "grid", "scores",
        "best", "why", "seconds", "warnings",
    }  # fmt: skip
    assert Recipe.from_dict(said["recipe"]) == found.recipe
    assert said["scores"][said["best"]]["parameters"] == said["parameters"] == {"lambda": 0.3}
    assert said["grid"] == {"lambda": [0.1, 0.3]} and said["limit"] == 7 and said["seeds"] == [0]


def test_test_data_chooses_nothing_unless_it_is_called_an_oracle(recipe: Recipe):
    with pytest.raises(TaskError) as caught:
        choose(near(1), recipe, {"lambda": [0.1]}, split="test")
    assert str(caught.value) == (
        "Nothing is chosen on test data: take the split 'val', or ask for an oracle, which is marked as one."
    )
    found = choose(near(1), recipe, {"lambda": [0.1]}, split="test", oracle=True)
    assert found.oracle and found.to_dict()["oracle"] is True
    assert not choose(near(1), recipe, {"lambda": [0.1]}, oracle=True).oracle, "validation data is no oracle"


def test_a_point_that_cannot_be_measured_is_passed_over(recipe: Recipe):
    def measure(state: Mapping[str, Tensor]) -> dict[str, float]:
        if state["w"].mean() > 1:
            raise CheckpointError("The features are not finite.")
        return {"a": 0.25}

    found = choose(measure, recipe, {"lambda": [0.5, 0.1, 0.7]})
    assert found.parameters == {"lambda": 0.1} and found.best == 1
    assert [point.accuracy for point in found.scores] == [None, 0.25, None]
    assert found.scores[0].to_dict()["error"] == "The features are not finite." and "error" not in (
        found.scores[1].to_dict()
    )
    assert "2 could not be measured, such as lambda = 0.5." in found.why
    with pytest.raises(TaskError, match=r"No point of the grid could be measured: The features are not finite\."):
        choose(measure, recipe, {"lambda": [0.5]})


def test_what_cannot_be_chosen_from_is_said_before_anything_is_merged(recipe: Recipe):
    def never(_: object) -> dict[str, float]:
        raise AssertionError("nothing may be measured")

    for grid, error, sentence in (
        ({}, TaskError, "The grid is empty"),
        ({"lambda": []}, TaskError, "The grid is empty"),
        ({"lambda": "0.1"}, TaskError, "The grid is empty"),
        ({"lambbda": [1]}, MethodError, "no parameter 'lambbda'. Did you mean 'lambda'"),
        ({"lambda": [0.1, "much"]}, MethodError, "must be a number, not 'much'"),
        ({"lambda": [0.1, float("nan")]}, MethodError, "must be a finite number"),
        ({"lambda": [1000]}, MethodError, "is 1000, out of range"),
        ({"init.lambda": [0.1]}, MethodError, "no parameter 'init.lambda'"),
    ):
        with pytest.raises(error, match=sentence):
            choose(never, recipe, grid)
    stopped = Stop()
    stopped.set()
    with pytest.raises(Cancelled):
        choose(never, recipe, {"lambda": [0.1]}, stop=stopped)
    with pytest.raises(TaskError, match="must give"):
        choose(lambda _: {}, recipe, {"lambda": [0.1]})


def test_seeds_are_averaged_over_where_there_is_randomness(recipe: Recipe):
    drop = recipe.replace(merge_method="dare_linear", parameters={"density": 0.5})
    alone = [choose(near(1.6), drop, {"lambda": [0.2, 0.4]}, seeds=[seed]) for seed in (0, 1, 2)]
    found = choose(near(1.6), drop, {"lambda": [0.2, 0.4]}, seeds=[0, 1, 2, 2])
    assert found.seeds == (0, 1, 2)
    for i, point in enumerate(found.scores):
        assert point.by_seed == tuple(one.scores[i].accuracy for one in alone)
        assert point.accuracy == pytest.approx(np.mean(point.by_seed))
        assert len(set(point.by_seed)) > 1
    assert choose(near(1.6), recipe, {"lambda": [0.2]}, seeds=[3, 4]).seeds == (3,), "no randomness: once is enough"


def test_values_of_the_init_go_to_the_init(recipe: Recipe):
    start = recipe.replace(merge_method="mats", init={"merge_method": "ties", "parameters": {"density": 0.2}})
    changed = with_values(start, {"iterations": 5, "init.lambda": 0.3})
    assert changed.parameters == {"iterations": 5}
    assert changed.init.to_plain() == {"merge_method": "ties", "parameters": {"density": 0.2, "lambda": 0.3}}
    with pytest.raises(RecipeError, match=r"has init.lambda, but the recipe has no 'init'"):
        with_values(recipe, {"init.lambda": 0.3})


def test_progress_counts_the_points(recipe: Recipe):
    seen: list[tuple[int, int, str]] = []
    choose(near(1), recipe, {"lambda": [0.1, 0.2]}, progress=lambda *step: seen.append(step))
    assert seen == [(0, 2, "measuring lambda = 0.1"), (1, 2, "measuring lambda = 0.2"), (2, 2, "chosen")]


# -- iterations of a solver --------------------------------------------------------------------------------------------


def spread(seed: int, rows: int, columns: int) -> Tensor:
    """A Gram matrix over a few rows whose columns have very different sizes, so that the solver takes many steps."""
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * torch.logspace(0, -2, columns)
    return x.T @ x / rows


@pytest.fixture
def matched(tmp_path: Path) -> Recipe:
    """Three random experts with K-FAC statistics on disk; MaTS from task arithmetic."""
    rng = torch.Generator().manual_seed(0)
    (tmp_path / "stats").mkdir()
    base = torch.randn(4, 6, generator=rng)
    save_file({"w": base, "b": torch.zeros(4)}, tmp_path / "base.safetensors")
    models = []
    for seed, name in enumerate(("a", "b", "c")):
        path = tmp_path / f"{name}.safetensors"
        save_file({"w": base + 0.1 * torch.randn(4, 6, generator=rng), "b": torch.ones(4)}, path)
        models.append(ModelEntry(str(path)))
        block = Block(spread(seed, 20, 6), spread(9 + seed, 20, 4)[None], rows=20, layout="linear", shape=(4, 6))
        made = TaskStatistics(name, {"w": block}, weights_hash=load(path).weights_hash, fisher="exact", examples=20)
        write(made, tmp_path / "stats" / f"{name}.safetensors")
    return Recipe(
        "mats", tuple(models), base_model=str(tmp_path / "base.safetensors"), statistics=str(tmp_path / "stats"),
        init={"merge_method": "task_arithmetic", "parameters": {"lambda": 0.4}}, dtype="float64",
    )  # fmt: skip


def test_iterations_come_from_one_pass_with_0_among_them(matched: Recipe, monkeypatch: pytest.MonkeyPatch):
    passes: list[tuple[int, ...]] = []
    real = chooser.merge_snapshots

    def counted(plan: Any, grid: Any, *rest: Any, **options: Any) -> Any:
        passes.append(tuple(grid))
        return real(plan, grid, *rest, **options)

    monkeypatch.setattr(chooser, "merge_snapshots", counted)
    states: list[Tensor] = []

    def measure(state: Mapping[str, Tensor]) -> dict[str, float]:
        states.append(state["w"].clone())
        return {"a": 0.5}

    found = choose(measure, matched, {"iterations": [5, 2, 5], "init.lambda": [0.1, 0.4]})
    assert passes == [(0, 2, 5), (0, 2, 5)], "one pass for each init"
    assert found.grid == {"iterations": (0, 2, 5), "init.lambda": (0.1, 0.4)}
    assert found.best == 0 and found.parameters["iterations"] == 0, "equal: as little change as there can be"
    order = [(k, start) for start in (0.1, 0.4) for k in (0, 2, 5)]
    for (k, start), state in zip(order, states, strict=True):
        alone = merge_to_memory(plan_recipe(with_values(matched, {"iterations": k, "init.lambda": start})))
        assert torch.equal(state, alone["w"]), (k, start)
    assert len({tuple(state.flatten().tolist()) for state in states}) == 6


def test_what_validation_chooses_is_never_below_the_init(matched: Recipe):
    start = merge_to_memory(plan_recipe(with_values(matched, {"iterations": 0})))["w"]

    def measure(state: Mapping[str, Tensor]) -> dict[str, float]:
        return {"a": 1 / (1 + float((state["w"] - start).norm()))}  # every step away from the init is for the worse

    found = choose(measure, matched, {"iterations": [5, 10]})
    assert found.parameters == {"iterations": 0} and found.scores[0].accuracy == 1.0
    assert found.recipe.parameters["iterations"] == 0
    two = choose(lambda s: {"a": 1 - measure(s)["a"]}, matched, {"off_diagonal": [1.0, 0.5], "iterations": [5]})
    assert two.parameters["iterations"] == 5
    assert f"At off_diagonal = {two.parameters['off_diagonal']:g}, iterations = 0 it is 0.00 %." in two.why
    assert max(point.accuracy for point in found.scores[1:]) < 1


def test_a_solve_that_is_not_needed_any_more_leaves_nothing_on_the_disk(
    matched: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    lying: list[int] = []

    def measure(_: Mapping[str, Tensor]) -> dict[str, float]:
        lying.append(len(list(place.iterdir())))
        if len(lying) == 3:
            raise RuntimeError
        return {"a": 1.0}

    choose(measure, matched, {"iterations": [2]})
    assert lying == [1, 1] and not list(place.iterdir())
    with pytest.raises(RuntimeError) as kept:
        choose(measure, matched, {"iterations": [2]})
    assert not list(place.iterdir()), kept
    with pytest.raises(MethodError, match="Parameter 'lambda' of 'task_arithmetic' must be a number"):
        choose(measure, matched, {"iterations": [2], "init.lambda": [0.1, "x"]})
    assert len(lying) == 3, "an init's value is checked before anything is solved"


def test_statistics_may_be_given_beside_the_recipe(matched: Recipe):
    bare = matched.replace(statistics=None)
    with pytest.raises(StatisticsError):
        choose(lambda _: {"a": 1.0}, bare, {"iterations": [1]})
    given = read_folder(matched.statistics)
    for statistics in (matched.statistics, given):
        found = choose(lambda s: {"a": float(s["w"].sum())}, bare, {"iterations": [3]}, statistics=statistics)
        expected = choose(lambda s: {"a": float(s["w"].sum())}, matched, {"iterations": [3]})
        assert found.scores == expected.scores


def test_other_parameters_of_a_solver_are_merged_one_by_one(matched: Recipe):
    found = choose(lambda s: {"a": float(s["w"].norm())}, matched, {"off_diagonal": [1.0, 0.5]})
    for point in found.scores:
        alone = merge_to_memory(plan_recipe(with_values(matched, point.parameters)))
        assert point.accuracy == float(alone["w"].norm())


# -- on a bench --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def zoo(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny zoo with experts that differ from the base, without any test split: it cannot have been looked at."""
    folder = routed_zoo.make(root, tmp_path_factory.mktemp("choose") / "tiny")
    for pack in (folder / "suite").glob("*.npz"):
        with np.load(pack) as data:
            kept = {name: data[name] for name in data if not name.endswith("_test")}
        np.savez_compressed(pack, **kept)
    (folder / "predictions.npz").unlink()
    return folder


@pytest.fixture(scope="module")
def bench(zoo: Path) -> Bench:
    experts = {name: str(zoo / "experts" / name) for name in ("grey", "colour")}
    return Bench(str(zoo / "base"), experts, load_suite(zoo), device="cpu")


def of(bench: Bench, *names: str) -> Recipe:
    return Recipe("task_arithmetic", tuple(ModelEntry(bench.experts[name]) for name in names), base_model=bench.base)


def test_a_benchs_scores_are_those_of_evaluating_on_validation(bench: Bench):
    recipe = of(bench, "grey", "colour")
    found = choose(bench, recipe, {"lambda": [0.0, 0.5, 2.0]}, limit=30)
    assert found.suite == "tiny" and found.tasks == ("grey", "colour") and found.items == {"grey": 30, "colour": 30}
    for point in found.scores:
        state = bench.merged(recipe.replace(parameters=point.parameters))
        expected = evaluate(bench.model(), bench.suite, split="val", limit=30, state=state, unseen=False)
        assert dict(point.tasks) == {name: score.accuracy for name, score in expected.tasks.items()}
        assert point.accuracy == pytest.approx(expected.seen.accuracy)
    assert found.scores[0].accuracy == 1.0, "the base is right everywhere by construction"
    assert found.parameters == {"lambda": 0.0} and min(p.accuracy for p in found.scores) < 1


def test_only_the_tasks_that_are_merged_choose(bench: Bench):
    alone = of(bench, "colour")
    assert choose(bench, alone, {"lambda": [0.0]}, limit=5).tasks == ("colour",)
    assert choose(bench, alone, {"lambda": [0.0]}, limit=5, tasks=["grey"]).tasks == ("grey",)
    renamed = alone.replace(models=(ModelEntry(bench.experts["colour"], name="x"),))
    assert choose(bench, renamed, {"lambda": [0.0]}, limit=5).tasks == ("grey", "colour")
    with pytest.raises(TaskError, match=r"no task 'gray'. Did you mean 'grey'"):
        choose(bench, alone, {"lambda": [0.0]}, tasks=["gray"])


def test_a_bench_for_a_recipe_has_its_models(bench: Bench, zoo: Path):
    made = bench_for(of(bench, "colour").replace(suite=str(zoo)), device="cpu")
    assert made.base == bench.base and made.experts == {"colour": bench.experts["colour"]}
    assert made.suite is not None and made.suite.name == "tiny"
    average = Recipe("linear", of(bench, "grey", "colour").models)
    assert bench_for(average, str(zoo)).base == bench.experts["grey"]


@pytest.fixture(scope="module")
def stats(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gram matrices of one layer of every expert, in a folder."""
    folder = tmp_path_factory.mktemp("stats")
    for seed, (task, source) in enumerate(bench.experts.items()):
        expert = load(source)
        name = next(name for name in expert if name.endswith("mlp.fc1.weight"))
        out, wide = expert[name].shape
        block = Block(spread(seed, 50, wide), spread(9 + seed, 50, out)[None], rows=50, layout="linear")
        made = TaskStatistics(task, {name: block}, weights_hash=expert.weights_hash, fisher="exact", examples=5)
        write(made, folder / f"{task}.safetensors")
    return folder


def test_a_bench_takes_the_statistics_of_its_sources(bench: Bench, stats: Path):
    """The resident copies are float32 and the files may be anything: they are the same weights to the statistics."""
    recipe = of(bench, "grey", "colour").replace(merge_method="mats", init="average", statistics=str(stats))
    found = choose(bench, recipe, {"iterations": [2, 4], "objective": ["kfac", "gram"]}, limit=10)
    assert found.grid["iterations"] == (0, 2, 4) and len(found.scores) == 6
    for point in found.scores:
        state = bench.merged(with_values(recipe, point.parameters))
        expected = evaluate(bench.model(), bench.suite, split="val", limit=10, state=state, unseen=False)
        assert point.accuracy == pytest.approx(expected.seen.accuracy)
    swapped = recipe.replace(models=tuple(
        ModelEntry(bench.experts[task], name=name) for task, name in (("grey", "colour"), ("colour", "grey"))
    ))  # fmt: skip
    again = choose(bench, swapped, {"iterations": [4], "objective": ["kfac"]}, limit=10)
    assert again.scores[1].tasks == found.scores[2 * 2].tasks, "statistics go by the weights, not by the name"


def test_coefficients_that_are_learned_are_learned_at_every_point(bench: Bench, zoo: Path):
    recipe = of(bench, "grey", "colour").replace(
        merge_method="adamerging", suite=str(zoo), parameters={"steps": 2, "examples": 6, "batch": 3}
    )
    found = choose(bench, recipe, {"start": [0.0, 1.0]}, limit=10)
    for point in found.scores:
        candidate = with_values(recipe, point.parameters)
        state = merge_to_memory(planned(candidate, prepare(candidate, device="cpu")))
        expected = evaluate(bench.model(), bench.suite, split="val", limit=10, state=state, unseen=False)
        assert point.accuracy == pytest.approx(expected.seen.accuracy)


# -- the verb ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def written(bench: Bench, zoo: Path, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(of(bench, "grey", "colour").replace(suite=str(zoo)).to_yaml())
    return path


def test_the_verb_shows_the_grid_and_writes_the_recipe(written: Path, capsys: pytest.CaptureFixture[str]):
    out = written.parent / "chosen.yaml"
    arguments = ["choose", str(written), "--grid", "lambda=2,0,1", "--limit", "20", "--device", "cpu"]
    assert cli.main([*arguments, "--out", str(out)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == ["lambda", "mean", "%", "grey", "colour"]
    assert [line.split()[0] for line in shown[1:4]] == ["2", "*", "1"]
    assert shown[2].split() == ["*", "0", "100.00", "100.0", "100.0"]
    assert shown[4].startswith(
        "lambda = 0 has the highest mean accuracy on val, 100.00 % over 2 tasks, of 3 grid points"
    )
    assert shown[5].startswith("tiny, split val, 20 items a task, 2 tasks; ")
    assert shown[6] == f"Next: python -m mergelab merge {out} --out DIR"
    assert Recipe.read(out) == Recipe.read(written).replace(parameters={"lambda": 0.0})
    text = out.read_text()
    assert text.startswith("# lambda = 0 has the highest mean accuracy on val")
    assert "# The grid: lambda in 2, 0, 1. Measured on tiny, split val, 20 items a task, 2 tasks; " in text
    assert cli.main([*arguments, "--out", str(out)]) == 2
    assert "exists: choose another place for the recipe, or allow --overwrite." in capsys.readouterr().err
    assert cli.main([*arguments, "--out", str(out), "--overwrite", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["parameters"] == {"lambda": 0.0} and said["grid"] == {"lambda": [2.0, 0.0, 1.0]}


def test_the_verb_chooses_the_iterations(
    written: Path, stats: Path, bench: Bench, zoo: Path, capsys: pytest.CaptureFixture[str]
):
    matched = of(bench, "grey", "colour").replace(suite=str(zoo), merge_method="mats", init="average", title="MaTS")
    written.write_text(matched.to_yaml())
    out = written.parent / "chosen.yaml"
    arguments = ["choose", str(written), "--grid", "iterations=0,2", "--grid", "objective=gram,kfac", "--limit", "5"]
    assert cli.main([*arguments, "--stats", str(stats), "--out", str(out), "--device", "cpu"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == ["iterations", "objective", "mean", "%", "grey", "colour"]
    assert [line.lstrip("* ").split()[:2] for line in shown[1:5]] == [
        ["0", "gram"], ["0", "kfac"], ["2", "gram"], ["2", "kfac"]
    ]  # fmt: skip
    chosen = Recipe.read(out)
    assert chosen.statistics == str(stats) and chosen.title == "MaTS" and "iterations" in chosen.parameters
    mixed = written.parent / "mixed"
    for task in ("grey", "colour"):
        found = read(stats / f"{task}.safetensors")
        found.fisher = "sampled" if task == "colour" else "exact"
        write(found, mixed / f"{task}.safetensors")
    assert cli.main([*arguments, "--stats", str(mixed), "--device", "cpu"]) == 0
    assert capsys.readouterr().err == (
        "mergelab: The statistics mix Fisher estimates (exact for grey; sampled for colour): their scales differ, and "
        "so do the tasks' weights.\n"
    )
    assert cli.main([*arguments, "--stats", str(written.parent / "nowhere"), "--device", "cpu"]) == 2
    assert "python -m mergelab stats" in capsys.readouterr().err


def test_the_verb_says_what_is_wrong(written: Path, capsys: pytest.CaptureFixture[str]):
    for options, sentence in (
        (["--grid", "lambda"], "--grid 'lambda' is not understood; write it as NAME=V1,V2, such as lambda=0.1,0.2."),
        (["--grid", "lambda=1,,2"], "--grid 'lambda=1,,2' is not understood"),
        (["--grid", "lambda=1", "--grid", "lambda=2"], "--grid names 'lambda' twice; give all its values in one."),
        (["--grid", "lambda=high"], "Parameter 'lambda' of 'task_arithmetic' must be a number, not 'high'."),
        (["--grid", "lambda=1", "--split", "test"], "Nothing is chosen on test data"),
        (["--grid", "lambda=1", "--seeds", "a"], "--seeds 'a' is not understood"),
        (["--grid", "lambda=1", "--suite", "nowhere"], "nowhere"),
    ):
        assert cli.main(["choose", str(written), *options]) == 2
        assert sentence in capsys.readouterr().err


def test_values_are_read_as_what_they_look_like():
    from mergelab.cli.choosing import parse_grid

    assert parse_grid(["a=0,5", "b=0.1, 1e-3", "c=true,False", "d=kfac,gram"]) == {
        "a": [0, 5], "b": [0.1, 1e-3], "c": [True, False], "d": ["kfac", "gram"]
    }  # fmt: skip
    assert all(type(value) is int for value in parse_grid(["a=0,5"])["a"])
