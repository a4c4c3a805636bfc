"""Matched methods through the engine: starts, snapshots, the log, folders, pre-flight, what is refused and how."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest_engine import state
from matched_cases import LINEAR, NAMES, psd, recipe, statistics_of

import mergelab
from mergelab.checkpoints import load
from mergelab.engine import Plan, merge_snapshots, merge_to_folder, merge_to_memory, plan, plan_recipe, preflight
from mergelab.engine.gate import Gate
from mergelab.errors import Cancelled, MethodError, StatisticsError
from mergelab.methods import registry
from mergelab.progress import Stop
from mergelab.recipe import Recipe
from mergelab.statistics import Block, TaskStatistics

# ---- the start ----


@pytest.mark.parametrize("name", [m.name for m in registry().values() if not (m.learns or m.collects)])
def test_any_method_may_be_the_start(models: Any, statistics: Any, name: str) -> None:
    """No iterations and leftovers from the init: the result is the start, bit for bit (its own survey included)."""
    method = registry()[name]
    more = {"statistics": statistics} if method.statistics(method.defaults()) else {}
    expected = mergelab.merge(name, models, None if method.base == "unused" else state(), seed=3, **more)
    found = mergelab.merge(
        "mats", models, state(), seed=3, init=name, iterations=0, leftover="init", statistics=statistics
    )
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key


def test_a_start_takes_parameters_and_can_be_a_state_dict(models: Any, statistics: Any) -> None:
    more = {"iterations": 0, "leftover": "init", "statistics": statistics}
    parameters = {"lambda": 0.7, "weight": {"ant": 0.2, "bee": 0.9}}
    expected = mergelab.merge("task_arithmetic", models, state(), lambda_=0.7, weight={"ant": 0.2, "bee": 0.9})
    init = {"merge_method": "task_arithmetic", "parameters": parameters}
    found = mergelab.merge("mats", models, state(), init=init, **more)
    given = mergelab.merge("mats", models, state(), init=expected, **more)
    for key in LINEAR:
        assert torch.equal(found[key], expected[key]) and torch.equal(given[key], expected[key])
    base = mergelab.merge("mats", models, state(), init="base", **more)
    assert all(torch.equal(base[key], tensor) for key, tensor in state().items())


def test_no_init_is_the_average(models: Any, statistics: Any) -> None:
    """The task arithmetic that is the average, as the start, ends where the average does."""
    one = mergelab.merge("mats", models, state(), statistics=statistics, dtype="float64", iterations=3)
    for init in ("average", {"merge_method": "linear"}, {"merge_method": "task_arithmetic",
                                                         "parameters": {"lambda": 0.5}}):  # fmt: skip
        other = mergelab.merge("mats", models, state(), statistics=statistics, dtype="float64", init=init, iterations=3)
        for key in LINEAR:
            torch.testing.assert_close(one[key], other[key], rtol=1e-9, atol=1e-9)


def test_leftovers(models: Any, statistics: Any) -> None:
    """The mean is the default also where the start is another; init keeps it; fisher merges what has a diagonal."""
    mean = {key: (models["ant"][key] + models["bee"][key]) / 2 for key in ("norm", "block.0.bias")}
    common = {"statistics": statistics, "init": "base"}
    average = mergelab.merge("mats", models, state(), **common)
    init = mergelab.merge("mats", models, state(), leftover="init", **common)
    fisher = mergelab.merge("mats", models, state(), leftover="fisher", **common)
    for key, tensor in mean.items():
        torch.testing.assert_close(average[key], tensor)
        assert torch.equal(init[key], state()[key])
    torch.testing.assert_close(fisher["norm"], mean["norm"])  # no diagonal there
    diagonals = [s.block("block.0.bias").diagonal for s in statistics.values()]
    expected = sum(f * m["block.0.bias"] for f, m in zip(diagonals, models.values(), strict=True)) / sum(diagonals)
    torch.testing.assert_close(fisher["block.0.bias"], expected)
    for key in LINEAR:
        assert torch.equal(average[key], init[key]) and torch.equal(average[key], fisher[key])


# ---- the log ----


def test_the_log_names_what_was_averaged_and_why(made: Plan, tmp_path: Path) -> None:
    out = merge_to_folder(made, tmp_path / "out")
    said = json.loads((out / "mergelab_solve.json").read_text())
    assert said["format"] == "mergelab-solve/1" and said["method"] == "mats" and said["init"] == "base"
    entries = {entry["tensor"]: entry for entry in said["tensors"]}
    assert list(entries) == sorted(entries)  # the tensors' order, whoever finished first
    assert "position_ids" not in entries
    assert entries["block.0.weight"]["by"] == "cg"
    assert len(entries["block.0.weight"]["objective"]) == 5
    assert entries["norm"]["by"] == "average"
    assert entries["norm"]["why"] == "a norm, no linear layer (statistics of 'ant')"
    assert entries["block.0.bias"]["why"].startswith("no K-FAC factors")
    assert said["summary"]["by"] == {"cg": 2, "average": 2}
    assert said["summary"]["left"]["average: a norm, no linear layer (statistics of 'ant')"] == ["norm"]
    assert [s["task"] for s in said["statistics"]] == ["ant", "bee"]


def test_the_log_does_not_change_a_bit(made: Plan, tmp_path: Path) -> None:
    out = load(merge_to_folder(made, tmp_path / "out"))
    for name, tensor in merge_to_memory(made).items():
        assert torch.equal(out[name], tensor)


def test_other_methods_write_no_log(models: Any, tmp_path: Path) -> None:
    out = merge_to_folder(plan("linear", models), tmp_path / "out")
    assert not (out / "mergelab_solve.json").exists()


def test_the_written_recipe_makes_the_same_weights(zoo: dict[str, str], folder: Path, tmp_path: Path) -> None:
    models = {name: zoo[name] for name in NAMES}
    init = {"merge_method": "ties", "parameters": {"density": 0.5}}
    direct = plan("mats", models, zoo["base"], {"iterations": 3}, init=init, statistics=folder)
    first = merge_to_folder(direct, tmp_path / "one")
    written = Recipe.read(first / "mergelab_recipe.yaml")
    assert written.statistics == str(folder) and written.init.merge_method == "ties"
    again = merge_to_folder(plan_recipe(written), tmp_path / "two")
    assert (first / "model.safetensors").stat().st_size == (again / "model.safetensors").stat().st_size
    one, two = load(first), load(again)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert (
        "Data used for the merge itself: labelled, 5 examples a task from the split val."
        in (first / "README.md").read_text()
    )


# ---- snapshots ----


def test_a_snapshot_is_a_run_of_its_own(made: Plan, tmp_path: Path) -> None:
    grid = (0, 1, 2, 5, 30)
    shots = merge_snapshots(made, grid, tmp_path / "shots")
    assert shots.grid == grid
    assert sorted(path.name for path in shots.folder.iterdir()) == [
        *(f"iteration-{k:05d}.safetensors" for k in grid), "mergelab_solve.json",
    ]  # fmt: skip
    for k in grid:
        alone = merge_to_memory(made.with_parameters({"iterations": k}))
        found = shots.state(k)
        assert found.keys() == alone.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in alone.items()), k
    assert not torch.equal(shots.state(0)["block.0.weight"], shots.state(5)["block.0.weight"])
    assert [entry["tensor"] for entry in shots.log] == ["block.0.bias", "block.0.weight", "block.1.weight", "norm"]
    shots.close()
    assert shots.folder.exists()


def test_snapshots_after_the_solver_stopped_repeat_its_result(models: Any, statistics: Any) -> None:
    made = plan("mats", models, state(), {"objective": "identity"}, init="base")
    shots = merge_snapshots(made, (0, 1, 10))
    one, ten = shots.state(1), shots.state(10)
    assert all(torch.equal(one[name], ten[name]) for name in one)
    place = shots.folder
    assert place.exists()
    shots.close()
    assert not place.exists()


def test_a_temporary_folder_goes_with_its_object(made: Plan) -> None:
    shots = merge_snapshots(made, (0, 2))
    place, kept = shots.folder, shots.state(2)
    del shots
    assert not place.exists()
    assert kept["norm"].isfinite().all()


def test_snapshots_that_are_stopped_leave_nothing(made: Plan, tmp_path: Path) -> None:
    stop = Stop()
    stop.set()
    with pytest.raises(Cancelled):
        merge_snapshots(made, (0, 2), tmp_path / "shots", stop=stop)
    assert not list(tmp_path.iterdir())


def test_snapshots_of_what_has_no_iterations(models: Any, made: Plan) -> None:
    with pytest.raises(MethodError) as caught:
        merge_snapshots(plan("linear", models), (0, 1))
    assert str(caught.value) == "Method 'linear' has no 'iterations', so there are no snapshots of it; use 'mats'."
    with pytest.raises(MethodError, match=r"must be a whole number, not 1\.5"):
        merge_snapshots(made, (0, 1.5))
    with pytest.raises(MethodError, match="is -1, out of range: give 0 to 10000"):
        merge_snapshots(made, (-1, 2))
    with pytest.raises(MethodError, match="grid is empty"):
        merge_snapshots(made, ())
    shots = merge_snapshots(made, (0, 2))
    with pytest.raises(MethodError) as caught:
        shots.state(1)
    assert str(caught.value) == "There is no snapshot after 1 iterations; there are 0, 2."


# ---- folders, recipes, pre-flight ----


def test_statistics_go_to_models_by_their_weights(zoo: dict[str, str], folder: Path) -> None:
    """Models under other names get the statistics of their weights."""
    named = plan("mats", {"bee": zoo["ant"], "x": zoo["bee"]}, zoo["base"], statistics=folder)
    assert [s.task for s in named.statistics if s is not None] == ["ant", "bee"]


def test_a_recipe_with_statistics_and_init(zoo: dict[str, str], folder: Path) -> None:
    given = recipe(zoo, statistics=str(folder), init="base", parameters={"iterations": 3, "weight": 0.5})
    found = merge_to_memory(plan_recipe(given))
    models = {name: zoo[name] for name in NAMES}
    expected = mergelab.merge(
        "mats", models, zoo["base"], statistics=folder, init="base", iterations=3, weight=0.5
    )  # fmt: skip
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    moved = plan_recipe(given.replace(statistics=None), statistics=folder)
    assert torch.equal(merge_to_memory(moved)["block.0.weight"], found["block.0.weight"])


def test_preflight_says_what_a_matched_merge_needs(zoo: dict[str, str], folder: Path) -> None:
    given = recipe(zoo, statistics=str(folder), init={"merge_method": "task_arithmetic", "parameters": {"lambda": 0.2}})
    report = preflight(given)
    texts = [finding.text for finding in report.findings]
    assert report.ok
    assert (
        "Statistics (kfac) of 2 tasks, labelled, 5 examples a task from the split val: 2 of 4 tensors have them, the "
        "others become the mean of the models." in texts
    )
    assert "MaTS starts from task_arithmetic (lambda 0.2)." in texts, texts
    assert not any("does not use the base" in text for text in texts)
    assert report.bytes_out == sum(4 * n for n in (24, 6, 24, 4)) + 5 * 8
    base = preflight(recipe(zoo, merge_method="task_arithmetic"))
    # A and G of the larger weight, for two models, in float32
    assert report.peak_memory >= 2 * 4 * (4 * 4 + 6 * 6)
    assert base.ok


def test_preflight_lists_missing_statistics(zoo: dict[str, str], tmp_path: Path) -> None:
    report = preflight(recipe(zoo, statistics=str(tmp_path / "none")))
    assert not report.ok
    assert any("There is no folder" in finding.text for finding in report.findings)


def test_the_estimate_counts_statistics_and_products(models: Any) -> None:
    from mergelab.engine.estimate import estimate

    size, count = 256, 2
    random = torch.Generator().manual_seed(0)
    weights = {name: {"w": torch.randn(size, size, generator=random)} for name in NAMES}
    s = {name: TaskStatistics(name, {"w": Block(psd(size, random), psd(size, random)[None], rows=9, layout="linear",
                                                shape=(size, size))}) for name in NAMES}  # fmt: skip
    made = plan("mats", weights, statistics=s, parameters={"iterations": 0})
    plain = estimate(plan("linear", weights), 2)
    found = estimate(made, 2)
    held = count * 2 * size * size * 4
    assert found.bytes_in - plain.bytes_in == held
    assert found.peak_memory >= held
    assert found.bytes_out == size * size * 4
    assert estimate(made.with_parameters({"iterations": 1000}), 2).seconds > 100 * found.seconds


def test_warnings_about_mixed_statistics_are_kept(models: Any, statistics: Any) -> None:
    mixed = {**statistics, "bee": statistics_of("bee", 1, fisher="sampled")}
    made = plan("mats", models, statistics=mixed)
    assert len(made.warnings) == 1 and "Fisher estimates" in made.warnings[0]
    assert merge_to_memory(made)


def test_another_objective_of_one_plan(made: Plan) -> None:
    gram = made.with_parameters({"objective": "gram"})
    assert not torch.equal(merge_to_memory(gram)["block.0.weight"], merge_to_memory(made)["block.0.weight"])
    linear = made.with_parameters({}, method="linear")
    assert torch.equal(merge_to_memory(linear)["norm"], merge_to_memory(made)["norm"])
    with pytest.raises(StatisticsError, match="needs block"):
        made.with_parameters({"objective": "block"})


def test_the_gate_lets_in_what_fits_and_always_one() -> None:
    import threading
    import time

    gate, most, now, lock = Gate(10), 0, 0, threading.Lock()

    def work(size: int) -> None:
        nonlocal most, now
        with gate.hold(size):
            with lock:
                now += size
                most = max(most, now)
            time.sleep(0.005)
            with lock:
                now -= size

    threads = [threading.Thread(target=work, args=(size,)) for size in (4, 6, 3, 9, 20, 1, 5, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert not any(thread.is_alive() for thread in threads)
    assert most == 20


# ---- what the output dtype costs, and a start that is broken ----


def test_the_log_says_what_a_narrow_output_dtype_costs(models: Any, statistics: Any, tmp_path: Path) -> None:
    """The rounding of bfloat16, computed apart from the merge in float64."""
    given = {"statistics": statistics, "dtype": "float64"}
    wide = merge_to_memory(plan("regmean", models, state(), **given, out_dtype="float64"))
    out = merge_to_folder(plan("regmean", models, state(), **given, out_dtype="bfloat16"), tmp_path / "out")
    said = json.loads((out / "mergelab_solve.json").read_text())
    entries = {entry["tensor"]: entry for entry in said["tensors"]}
    for name in LINEAR:
        rounded = wide[name].to(torch.bfloat16).to(torch.float64)
        expected = float((rounded - wide[name]).norm() / wide[name].norm())
        assert entries[name]["cast_error"] == pytest.approx(expected, rel=1e-6)
    assert said["summary"]["cast_error"] == max(entry["cast_error"] for entry in said["tensors"])


def test_a_start_that_is_not_finite_is_named_as_the_start(models: Any, statistics: Any) -> None:
    broken = state()
    broken["block.0.weight"] = broken["block.0.weight"].clone()
    broken["block.0.weight"][1, 2] = float("nan")
    with pytest.raises(MethodError) as error:
        mergelab.merge("mats", models, state(), statistics=statistics, init=broken)
    assert str(error.value) == (
        "The init has NaN (1 of 24 values, the first at [1, 2]) in tensor 'block.0.weight'; the file is damaged or its "
        "training diverged, so use another checkpoint."
    )
