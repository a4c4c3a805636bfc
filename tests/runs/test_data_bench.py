"""Statistics, paths, coefficients and corrections on a bench: collected once, kept by what they are of, plain."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from training.learn_zoo import moved_zoo

from mergelab.checkpoints import MemoryCheckpoint
from mergelab.engine import merge_to_memory
from mergelab.errors import Cancelled, DataNeededError, StatisticsError, TaskError
from mergelab.progress import Stop
from mergelab.recipe import ModelEntry, Recipe
from mergelab.runs import Bench, data_plans, learnt, matched, room, solve_path
from mergelab.runs.data_bench import DataBench
from mergelab.runs.matched import Wish
from mergelab.tasks import load_suite

TASKS = ("colour", "grey")
WISH = Wish(TASKS, 12)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return moved_zoo(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="module", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory):
    patch = pytest.MonkeyPatch()
    patch.setenv("MERGELAB_HOME", str(tmp_path_factory.mktemp("home")))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def bench(zoo: Path) -> Bench:
    return Bench(str(zoo / "base"), {t: str(zoo / "experts" / t) for t in TASKS}, load_suite(zoo), device="cpu")


@pytest.fixture(scope="module")
def data(bench: Bench) -> DataBench:
    return DataBench(bench)


def recipe_of(bench: Bench, method: str = "mats", **more: object) -> Recipe:
    models = tuple(ModelEntry(bench.experts[t], t) for t in TASKS)
    return Recipe(method, models, base_model=bench.base, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def solved(bench: Bench, data: DataBench) -> Recipe:
    """A recipe of mats over collected statistics."""
    recipe = recipe_of(bench, parameters={"iterations": 6}, init="base")
    return recipe.replace(statistics=data.collect(recipe, WISH)["name"])


# ---- statistics -----------------------------------------------------------------------------------------------------


def test_kinds_are_those_of_the_method_and_of_its_start(bench: Bench) -> None:
    assert matched.kinds_for(recipe_of(bench, "ties")) == ()
    assert matched.kinds_for(recipe_of(bench, "fisher")) == ("diag",)
    assert matched.kinds_for(recipe_of(bench, parameters={"objective": "gram"})) == ("gram",)
    assert matched.kinds_for(recipe_of(bench, parameters={"objective": "identity"})) == ()
    assert matched.kinds_for(recipe_of(bench, init="fisher")) == ("kfac", "diag")


def test_a_second_collection_reads_what_is_kept(
    bench: Bench, data: DataBench, solved: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mergelab.calibration

    def never(*_args: object, **_options: object) -> None:
        raise AssertionError("nothing is to be collected")

    monkeypatch.setattr(mergelab.calibration, "collect_zoo", never)
    made = data.collect(solved, WISH)
    assert made["name"] == solved.statistics and made["examples"] == [12] and made["kinds"] == ["gram", "kfac"]
    # RegMean needs a part of what K-FAC has, whatever the labels of gradients
    part = data.collect(recipe_of(bench, "regmean"), WISH)
    assert part["name"] == solved.statistics
    cost = data.estimate(solved, WISH)
    folder = Path(str(matched.folder_of(solved.statistics)))
    assert cost["kept"] == solved.statistics and cost["seconds"] == 0
    assert cost["bytes"] == sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    for other in (Wish(TASKS, 13), Wish(TASKS, 12, "test"), Wish(TASKS, 12, seed=1), Wish(TASKS[:1], 12),
                  Wish(TASKS, 12, fisher="sampled")):  # fmt: skip
        with pytest.raises(AssertionError, match="nothing is to be"):
            data.collect(solved, other)


def test_other_weights_are_another_set(bench: Bench, zoo: Path, solved: Recipe) -> None:
    other = Bench(bench.base, bench.experts, bench.suite, device="cpu")
    state = {name: tensor.clone() for name, tensor in other._checkpoint(bench.experts["grey"]).items()}
    state[next(name for name, tensor in state.items() if tensor.ndim == 2)] += 0.01
    other._resident[bench.experts["grey"]] = MemoryCheckpoint(state, name="moved")
    assert matched.kept_for(other, solved, WISH) is None and matched.kept_for(bench, solved, WISH)


def test_an_estimate_is_of_what_is_written(bench: Bench, data: DataBench) -> None:
    recipe = recipe_of(bench, "fisher")
    cost = data.estimate(recipe, Wish(TASKS, 5))
    assert cost["kept"] is None and cost["examples"] == dict.fromkeys(TASKS, 5) and cost["seconds"] > 0
    made = data.collect(recipe, Wish(TASKS, 5))
    written = sum(s.nbytes for s in matched.opened(made["name"]).values())
    assert cost["bytes"] == written


def test_the_shipped_command_makes_the_same_numbers(solved: Recipe, zoo: Path, tmp_path: Path) -> None:
    from mergelab.cli import main

    command = matched.command(str(solved.statistics), None).replace("SOURCE", str(zoo))
    words = command.split()[3:]
    words[words.index("--out") + 1] = str(tmp_path / "again")
    assert main([*words]) == 0
    again, kept = matched.opened(str(tmp_path / "again")), matched.opened(str(solved.statistics))
    for task in TASKS:
        assert again[task].weights_hash == kept[task].weights_hash
        for name in kept[task].names:
            one, other = again[task].block(name), kept[task].block(name)
            assert one is not None and other is not None
            for piece, tensor in other.tensors.items():
                torch.testing.assert_close(one.tensors[piece], tensor, rtol=1e-5, atol=1e-9)


def test_stop_keeps_nothing(bench: Bench, data: DataBench) -> None:
    stop = Stop()
    stop.set()
    wish = Wish(TASKS, 7)
    with pytest.raises(Cancelled):
        data.collect(recipe_of(bench, "fisher"), wish, stop=stop)
    assert matched.kept_for(bench, recipe_of(bench, "fisher"), wish) is None


def test_what_cannot_be_collected_is_said(bench: Bench, data: DataBench) -> None:
    with pytest.raises(StatisticsError, match="needs no statistics"):
        data.collect(recipe_of(bench, "ties"), WISH)
    with pytest.raises(StatisticsError, match="tick at least one"):
        data.collect(recipe_of(bench), Wish(()))
    with pytest.raises(StatisticsError, match="no expert of the task 'nope'"):
        data.collect(recipe_of(bench), Wish(("nope",)))
    bare = DataBench(Bench(bench.base, bench.experts, None, device="cpu"))
    with pytest.raises(TaskError, match="no suite"):
        bare.collect(recipe_of(bench), WISH)
    with pytest.raises(StatisticsError, match="not kept on this machine"):
        matched.folder_of("statistics-ffffffffffff")
    assert matched.folder_of("some/folder") == "some/folder" and not matched.is_kept_name("statistics-x/../y")


def test_the_oldest_sets_make_room(bench: Bench, data: DataBench, solved: Recipe, monkeypatch) -> None:
    made = data.collect(recipe_of(bench, "fisher"), Wish(TASKS, 6))["name"]
    old = Path(str(matched.folder_of(made)))
    kept = Path(str(matched.folder_of(solved.statistics)))
    os.utime(old, (1, 1))
    size = sum(f.stat().st_size for f in kept.iterdir())
    monkeypatch.setenv("MERGELAB_STATISTICS_GB", str(size / 1e9))
    room.make_room("statistics", matched._NAME, kept)
    assert not old.exists() and kept.exists()


# ---- merging --------------------------------------------------------------------------------------------------------


def test_a_recipe_without_its_data_says_what_to_press(bench: Bench) -> None:
    with pytest.raises(DataNeededError, match="press Collect"):
        bench.merged(recipe_of(bench))
    with pytest.raises(DataNeededError, match="press Learn"):
        bench.merged(recipe_of(bench, "adamerging", parameters={"steps": 3}))
    assert data_plans.needs(recipe_of(bench, "ties")) == ""
    bench.merged(recipe_of(bench, parameters={"objective": "identity"}))


def test_values_move_on_one_plan_and_other_statistics_do_not(bench: Bench, data: DataBench, solved: Recipe) -> None:
    first = bench.plan(solved)
    again = bench.plan(solved.replace(parameters={"iterations": 2, "damping": 0.5}))
    assert again.statistics == first.statistics and again.values["damping"] == 0.5
    other = data.collect(solved, Wish(TASKS, 9))["name"]
    assert bench.plan(solved.replace(statistics=other)).statistics[0].examples == 9
    base = merge_to_memory(bench.plan(solved.replace(parameters={"iterations": 0})), device="cpu")
    mean = merge_to_memory(bench.plan(solved.replace(parameters={"iterations": 0}, init="average")), device="cpu")
    assert any(not torch.equal(base[name], mean[name]) for name in base), "another start is another plan"


# ---- the path -------------------------------------------------------------------------------------------------------


def test_the_path_is_what_merges_of_its_iterations_are(bench: Bench, solved: Recipe) -> None:
    path = solve_path.solve_path(bench, solved, (2, 6), limit=10)
    assert path.grid == (0, 2, 6), "no iterations are always among them"
    for k in path.grid:
        recipe = solved.replace(parameters={"iterations": k})
        shown = solve_path.snapshot_of(bench, recipe)
        merged = merge_to_memory(bench.plan(recipe), device="cpu")
        assert shown is not None and all(torch.equal(shown[name], merged[name]) for name in merged)
    assert solve_path.snapshot_of(bench, solved.replace(parameters={"iterations": 3})) is None
    assert solve_path.snapshot_of(bench, solved.replace(parameters={"iterations": 6, "damping": 1.0})) is None
    assert solve_path.snapshot_of(Bench(bench.base, bench.experts, None), solved) is None


def test_points_are_measured_on_validation_and_the_best_is_marked(bench: Bench, solved: Recipe) -> None:
    from mergelab.tasks import evaluate

    path = solve_path.solve_path(bench, solved, (2, 6), limit=10)
    falls = [point["objective"] for point in path.points]
    assert falls == sorted(falls, reverse=True) and falls[0] > falls[-1] >= 0
    for point in path.points:
        state = solve_path.snapshot_of(bench, solved.replace(parameters={"iterations": point["k"]}))
        found = evaluate(bench.model(), bench.suite, split="val", limit=10, tasks=TASKS, state=state)
        assert point["accuracy"] == pytest.approx(sum(s.accuracy for s in found.tasks.values()) / 2)
    top = max(point["accuracy"] for point in path.points)
    assert path.best == next(i for i, point in enumerate(path.points) if point["accuracy"] == top)
    json.dumps(path.to_dict())
    with pytest.raises(TaskError, match="Nothing is chosen on test"):
        solve_path.solve_path(bench, solved, split="test")


def test_changes_are_distances_from_the_start_in_task_vectors(bench: Bench, solved: Recipe) -> None:
    path = solve_path.solve_path(bench, solved, (2, 6), limit=10)
    base, experts = bench._checkpoint(bench.base), [bench._checkpoint(bench.experts[t]) for t in TASKS]
    end = solve_path.snapshot_of(bench, solved.replace(parameters={"iterations": 6}))
    moved = 0
    for block in path.blocks:
        name = block["tensor"]
        assert block["change"][0] == 0
        if block["left"] or block["by"] == "experts":
            continue
        moved += 1
        tau = sum(float(torch.linalg.vector_norm(e[name].double() - base[name].double())) for e in experts) / 2
        away = float(torch.linalg.vector_norm(end[name].double() - base[name].double()))
        assert block["change"][-1] == pytest.approx(away / tau, rel=1e-4)
    assert moved
    left = [block for block in path.blocks if block["left"]]
    assert left and all(block["why"] for block in left), "a block that was not solved says why"


def test_only_few_paths_keep_their_weights(bench: Bench, solved: Recipe) -> None:
    first = solve_path.solve_path(bench, solved, (2, 6), limit=10)
    for damping in (0.1, 0.2):
        solve_path.solve_path(bench, solved.replace(parameters={"damping": damping}), (1,), limit=5)
    assert len(solve_path._kept) == 2 and not first.snapshots.folder.exists()
    assert solve_path.snapshot_of(bench, solved) is None
    bench.merged(solved)  # it is solved again instead


def test_regmean_has_blocks_without_a_path(bench: Bench, data: DataBench, solved: Recipe) -> None:
    recipe = recipe_of(bench, "regmean", statistics=solved.statistics)
    rows = data.blocks(recipe)
    assert {row["by"] for row in rows} & {"cholesky", "eigen"} and any(row["left"] for row in rows)
    json.dumps(rows)
    assert "12 labelled val images" in data.used(recipe)


def test_inputs_through_merged_layers_are_collected_once_for_one_recipe(
    bench: Bench, data: DataBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mergelab.runs import collected, merged_through

    recipe = recipe_of(bench, "regmean_pp", parameters={"examples": 10})
    with pytest.raises(DataNeededError, match="press Collect"):
        bench.merged(recipe)
    assert data.estimate(recipe, Wish(TASKS, 10))["kept"] is None
    made = data.collect(recipe, Wish(TASKS, 10))
    assert made["name"] is None and made["tasks"] == list(TASKS) and "10 unlabelled val" in made["text"]
    state = bench.merged(recipe)
    again = collected.prepare(recipe, suite=bench.suite, load=bench._load, model=bench.model())
    for name, tensor in merge_to_memory(again, device="cpu").items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-5, atol=1e-6)

    def never(*_args: object, **_options: object) -> None:
        raise AssertionError("nothing is to be collected")

    monkeypatch.setattr(merged_through, "prepare", never)
    assert data.collect(recipe, Wish(TASKS, 10)) == made and data.estimate(recipe, Wish(TASKS, 10))["kept"]
    with pytest.raises(AssertionError):
        data.collect(recipe.replace(parameters={"examples": 11}), Wish(TASKS, 11))
    assert {row["by"] for row in data.blocks(recipe)} & {"cholesky", "eigen"}


# ---- learning and surgery -------------------------------------------------------------------------------------------


def test_coefficients_are_learned_once_and_merge_from_then_on(bench: Bench, data: DataBench, monkeypatch) -> None:
    recipe = recipe_of(bench, "adamerging", parameters={"steps": 4, "examples": 10})
    assert data.coefficients(recipe) is None
    made = data.learn(recipe)
    json.dumps(made)
    assert made["tasks"] == list(TASKS) and len(made["entropy"]) == 4 and made["history"][0]["step"] == 0
    assert all(value == pytest.approx(0.3) for row in made["history"][0]["values"] for value in row)
    learned = learnt.kept_learned(bench, recipe)
    layers = data.layers(learned.rows)
    for place, layer in enumerate(made["layers"]):
        rows = [i for i, row in enumerate(learned.rows) if layers[row] == layer]
        for t in range(2):
            mean = sum(learned.history[-1][1][i][t] for i in rows) / len(rows)
            assert made["history"][-1]["values"][t][place] == pytest.approx(mean, abs=1e-6)

    def never(*_args: object, **_options: object) -> None:
        raise AssertionError("nothing is to be learned")

    monkeypatch.setattr(learnt, "prepare", never)
    assert data.learn(recipe)["key"] == recipe.hash
    state = bench.merged(recipe)
    name = next(n for n, row in learned.coefficients.items() if "layer" in n)
    base = bench._checkpoint(bench.base)[name]
    tau = [bench._checkpoint(bench.experts[t])[name] - base for t in TASKS]
    want = base + sum(c * t for c, t in zip(learned.coefficients[name], tau, strict=True))
    torch.testing.assert_close(state[name], want, rtol=1e-5, atol=1e-6)
    assert "10 unlabelled val" in data.used(recipe)
    with pytest.raises(AssertionError):
        data.learn(recipe.replace(parameters={"steps": 5, "examples": 10}))


def test_one_coefficient_a_task_is_one_column(bench: Bench, data: DataBench) -> None:
    made = data.learn(recipe_of(bench, "adamerging", parameters={"steps": 2, "examples": 10, "per": "task"}))
    assert made["layers"] == ["all tensors"] and len(made["history"][-1]["values"][0]) == 1


def test_surgery_lessens_the_bias_and_says_what_it_needs(bench: Bench, data: DataBench) -> None:
    recipe = recipe_of(bench, "task_arithmetic", parameters={"lambda": 0.4})
    found = data.surgery(recipe, examples=20, rank=4, per_task=10)
    json.dumps(found)
    assert found["tasks"] == list(TASKS) and "task id needed at inference" in found["data_used"]
    for task in TASKS:
        assert found["bias"][task]["after"] < found["bias"][task]["before"]
        assert set(found["projections"][task]["points"]) == {"merged", "expert", "corrected"}
    plain = bench.evaluate(recipe, per_task=10)
    assert {t: s["before"] for t, s in found["accuracy"].items()} == {t: plain.tasks[t].accuracy for t in TASKS}
