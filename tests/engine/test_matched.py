"""Matched methods through the engine: starts, snapshots, the log, folders, pre-flight, what is refused and how."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest_engine import state
from torch import Tensor

import mergelab
from mergelab.checkpoints import load
from mergelab.engine import Plan, merge_snapshots, merge_to_folder, merge_to_memory, plan, plan_recipe, preflight
from mergelab.engine.gate import Gate
from mergelab.errors import Cancelled, MergeLabError, MethodError, RecipeError, StatisticsError
from mergelab.methods import registry
from mergelab.progress import Stop
from mergelab.recipe import Recipe
from mergelab.statistics import Block, TaskStatistics, write

LINEAR = {"block.0.weight": (6, 4), "block.1.weight": (4, 6)}
NAMES = ("ant", "bee")


def psd(size: int, random: torch.Generator) -> Tensor:
    rows = torch.randn(3 * size, size, generator=random)
    return rows.T @ rows / len(rows)


def statistics_of(name: str, seed: int, **more: Any) -> TaskStatistics:
    """K-FAC factors and a diagonal for the two weights, a diagonal for the bias, nothing for the norm."""
    random = torch.Generator().manual_seed(seed)
    blocks = {
        key: Block(psd(shape[1], random), psd(shape[0], random)[None], torch.rand(shape, generator=random), rows=50,
                   examples=5, layout="linear", shape=shape)
        for key, shape in LINEAR.items()
    }  # fmt: skip
    blocks["block.0.bias"] = Block(diagonal=torch.rand(6, generator=random), examples=5, shape=(6,))
    given = {"fisher": "empirical", "split": "val", "examples": 5, "skipped": {"norm": "a norm, no linear layer"}}
    return TaskStatistics(name, blocks, **{**given, **more})


@pytest.fixture
def models() -> dict[str, dict[str, Tensor]]:
    return {"ant": state(1, 0.05), "bee": state(2, 0.05)}


@pytest.fixture
def statistics() -> dict[str, TaskStatistics]:
    return {name: statistics_of(name, seed) for seed, name in enumerate(NAMES)}


@pytest.fixture
def made(models: Mapping[str, Any], statistics: Mapping[str, TaskStatistics]) -> Plan:
    return plan("mats", models, state(), {"iterations": 4}, init="base", statistics=statistics)


@pytest.fixture
def folder(zoo: dict[str, str], tmp_path: Path) -> Path:
    """Statistics on disk of the experts on disk."""
    place = tmp_path / "statistics"
    place.mkdir()
    for seed, name in enumerate(NAMES):
        write(statistics_of(name, seed, weights_hash=load(zoo[name]).weights_hash), place / f"{name}.safetensors")
    return place


def recipe(zoo: Mapping[str, str], **more: Any) -> Recipe:
    given = {"merge_method": "mats", "base_model": zoo["base"], "models": [{"model": zoo[n], "name": n} for n in NAMES]}
    return Recipe.from_dict({**given, **more})


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


# ---- what is refused ----


def refused(error: type[MergeLabError], *arguments: Any, **more: Any) -> str:
    with pytest.raises(error) as caught:
        plan(*arguments, **more)
    return str(caught.value)


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"weight": 0.0}, "Every 'weight' of 'mats' is 0, so no task counts; give at least one model more than 0."),
        ({"weight": -1.0}, "Parameter 'weight' of 'mats' is -1, out of range: give 0 to 1e+06."),
        ({"weight": float("nan")}, "Parameter 'weight' of 'mats' must be a finite number, not nan."),
        (
            {"weight": [1.0]},
            "Parameter 'weight' of 'mats' has 1 value for 2 models; give one for each model.",
        ),
        (
            {"weight": {"ant": 1.0}},
            "Parameter 'weight' of 'mats' has no value for the model 'bee'; give one for each model.",
        ),
        ({"iterations": -1}, "Parameter 'iterations' of 'mats' is -1, out of range: give 0 to 10000."),
        ({"iterations": 2.5}, "Parameter 'iterations' of 'mats' must be a whole number, not 2.5."),
        ({"rtol": 0.0}, "Parameter 'rtol' of 'mats' is 0, out of range: give 1e-14 to 1."),
        ({"off_diagonal": 1.1}, "Parameter 'off_diagonal' of 'mats' is 1.1, out of range: give 0 to 1."),
        ({"damping": -0.1}, "Parameter 'damping' of 'mats' is -0.1, out of range: give 0 to 1000."),
        ({"floor": -1e-8}, "Parameter 'floor' of 'mats' is -1e-08, out of range: give 0 to 1."),
        (
            {"objective": "block_fisher"},
            "Parameter 'objective' of 'mats' cannot be 'block_fisher'. Known: block, diag, gram, identity, kfac.",
        ),
        (
            {"preconditioner": "ilu"},
            "Parameter 'preconditioner' of 'mats' cannot be 'ilu'. Known: jacobi, kronecker, none.",
        ),
        (
            {"preconditioner": "kronecker", "objective": "diag"},
            "Preconditioner 'kronecker' of 'mats' needs objective 'kfac' or 'gram', not 'diag'; choose 'jacobi' or "
            "'none'.",
        ),
    ],
    ids=str,
)  # fmt: skip
def test_values_out_of_range(models: Any, statistics: Any, parameters: dict[str, Any], sentence: str) -> None:
    assert refused(MethodError, "mats", models, state(), parameters, statistics=statistics) == sentence


def test_one_model_is_too_few(models: Any, statistics: Any) -> None:
    for method in ("mats", "regmean", "fisher"):
        said = refused(MethodError, method, {"ant": models["ant"]}, statistics=statistics)
        assert said == f"Method {method!r} merges at least 2 models, but 1 is given."


def test_two_models_of_one_name() -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe("mats", ({"model": "a", "name": "x"}, {"model": "b", "name": "x"}))
    assert str(caught.value) == "Two models have the name 'x'; give each its own."


def test_keys_shapes_and_quantised_weights(models: Any, statistics: Any) -> None:
    ant, bee = models["ant"], models["bee"]
    lacks = {key: tensor for key, tensor in bee.items() if key == "position_ids"}
    assert refused(MethodError, "mats", {"ant": ant, "bee": lacks}, statistics=statistics) == (
        "Model 'bee' lacks 4 tensors that model 'ant' has: 'block.0.bias', 'block.0.weight', 'block.1.weight', 'norm'. "
        "Merge checkpoints of one architecture, fine-tuned from the same base."
    )
    more = {**bee, **{f"head.{i}": torch.ones(1) for i in range(7)}}
    assert refused(MethodError, "mats", {"ant": ant, "bee": more}, statistics=statistics) == (
        "Model 'bee' has 7 tensors that model 'ant' lacks: 'head.0', 'head.1', 'head.2', 'head.3', 'head.4' and 2 "
        "more. Save the model without its task head, or choose the base that it was fine-tuned from."
    )
    wide = {**bee, "norm": torch.ones(5)}
    assert refused(MethodError, "mats", {"ant": ant, "bee": wide}, statistics=statistics) == (
        "Tensor 'norm' of model 'bee' has shape 5, but 4 in model 'ant'. Merge checkpoints of one size and vocabulary."
    )
    quantised = {**bee, "block.0.weight": torch.ones(6, 4, dtype=torch.int8)}
    assert refused(MethodError, "mats", {"ant": ant, "bee": quantised}, statistics=statistics) == (
        "Tensor 'block.0.weight' of model 'bee' is stored as I8, but as F32 in model 'ant'. Convert the checkpoints to "
        "one floating-point dtype (quantised weights cannot be merged)."
    )


def test_statistics_that_are_not_there(models: Any, zoo: dict[str, str], tmp_path: Path) -> None:
    assert refused(StatisticsError, "mats", models) == (
        "Method 'mats' needs statistics of every model's task (kfac), and none are given; collect them with `python -m "
        "mergelab stats SOURCE --kinds kfac --out DIR` and name that folder as 'statistics' in the recipe, or with "
        "--stats."
    )
    assert refused(StatisticsError, "regmean", models, statistics="no/such") == (
        "There is no folder 'no/such' with statistics; make it with `python -m mergelab stats SOURCE --kinds gram "
        "--out no/such`, or name another."
    )
    assert refused(StatisticsError, "regmean", models, statistics=3) == (
        "Statistics must be a folder or a mapping of names to them, not int; collect them with python -m mergelab "
        "stats."
    )


def test_statistics_of_another_shape(models: Any, statistics: Any) -> None:
    random = torch.Generator().manual_seed(0)
    block = Block(psd(5, random), psd(6, random)[None], rows=9, layout="linear", shape=(6, 5))
    wrong = {**statistics, "bee": TaskStatistics("bee", {"block.0.weight": block}, where="bee.safetensors")}
    said = refused(StatisticsError, "mats", models, statistics=wrong)
    assert said.startswith("bee.safetensors (bee), tensor 'block.0.weight': the Gram matrix A has the shape [5, 5], ")
    assert "[4, 4]" in said


@pytest.mark.parametrize(
    ("init", "sentence"),
    [
        ("averge", "There is no init 'averge'. Did you mean 'average'?"),
        ("base", "The init 'base' needs the base, and none is given; name it, or start from 'average'."),
        (
            "ties",
            "The init 'ties': Method 'ties' works on differences from the base, but no base is given; name the "
            "checkpoint that the models were fine-tuned from.",
        ),
        (
            {"merge_method": "linear", "parameters": {"weigth": 1}},
            "The init 'linear': Method 'linear' has no parameter 'weigth'. Did you mean 'weight'?",
        ),
        (
            "adamerging",
            "The init 'adamerging' learns its coefficients on data first; merge it to a folder and give that as init: "
            "{model: FOLDER}.",
        ),
    ],
    ids=str,
)
def test_inits_that_cannot_be(models: Any, statistics: Any, init: Any, sentence: str) -> None:
    assert refused(MethodError, "mats", models, init=init, statistics=statistics) == sentence


def test_malformed_inits(models: Any, statistics: Any) -> None:
    assert refused(RecipeError, "mats", models, init={"method": "ties"}, statistics=statistics) == (
        "Unknown key 'method' in 'init'. Did you mean 'merge_method'?"
    )
    assert refused(RecipeError, "mats", models, init=0.3, statistics=statistics) == (
        "'init' must be a method's name, 'base', 'average' or a mapping with 'merge_method', not a number."
    )


def test_init_states_that_do_not_fit(models: Any, statistics: Any) -> None:
    short = {key: tensor for key, tensor in state().items() if key != "norm"}
    assert refused(MethodError, "mats", models, state(), init=short, statistics=statistics) == (
        "The init lacks 1 tensor that the base has: 'norm'. Give a merge of these models as init."
    )
    wide = {**state(), "norm": torch.ones(9)}
    assert refused(MethodError, "mats", models, init=wide, statistics=statistics) == (
        "Tensor 'norm' of the init has shape 9, but 4 in every model. Give a merge of these models as init."
    )


def test_a_method_that_starts_from_nothing(models: Any) -> None:
    assert refused(MethodError, "ties", models, state(), init="linear") == (
        "Method 'ties' does not start from another merge; leave 'init' out, or use 'fisher', 'mats', 'regmean' or "
        "'regmean_pp'."
    )


@pytest.fixture
def vectors() -> tuple[dict[str, dict[str, Tensor]], dict[str, TaskStatistics]]:
    """(IA)³ vectors of two experts with their full and diagonal Fishers, and Grams of nothing here."""
    random = torch.Generator().manual_seed(0)
    models = {name: {"k_proj.ia3_l": 1 + 0.1 * torch.randn(5, generator=random)} for name in NAMES}
    other = Block(psd(4, random), psd(4, random)[None], rows=9, layout="linear", shape=(4, 4))
    statistics = {
        name: TaskStatistics(
            name,
            {"k_proj.ia3_l": Block(diagonal=torch.rand(5, generator=random), full=psd(5, random), examples=9,
                                   shape=(5,)), "q_proj.weight": other},
        )
        for name in NAMES
    }  # fmt: skip
    return models, statistics


def test_ia3_vectors_have_no_linear_inputs(vectors: Any) -> None:
    models, statistics = vectors
    said = refused(MethodError, "mats", models, statistics=statistics)
    assert said == (
        "Method 'mats' with objective 'kfac' needs inputs of linear layers and gradients of their outputs (K-FAC "
        "factors), and all 1 tensors of these models are vectors, such as 'k_proj.ia3_l', with no linear inputs of "
        "their own; use 'mats' with objective 'block' or 'diag'."
    )
    assert refused(MethodError, "regmean", models, statistics=statistics) == (
        "Method 'regmean' needs inputs of linear layers (Gram matrices), and all 1 tensors of these models are vectors,"
        " such as 'k_proj.ia3_l', with no linear inputs of their own; use 'mats' with objective 'block' or 'diag'."
    )
    merged = mergelab.merge("mats", models, statistics=statistics, objective="block", iterations=50, dtype="float64")
    c = [s.block("k_proj.ia3_l").full.double() for s in statistics.values()]
    pull = sum(one @ m["k_proj.ia3_l"].double() for one, m in zip(c, models.values(), strict=True))
    torch.testing.assert_close(merged["k_proj.ia3_l"], torch.linalg.solve(sum(c), pull), rtol=1e-4, atol=1e-5)


def test_a_full_block_of_a_large_tensor(vectors: Any) -> None:
    random = torch.Generator().manual_seed(0)
    models = {name: {"w": torch.randn(200, 100, generator=random)} for name in NAMES}
    assert refused(MethodError, "mats", models, None, {"objective": "block"}, statistics=vectors[1]) == (
        "Method 'mats' with objective 'block' needs a full Fisher block per tensor, and no tensor has one: that of 'w' "
        "with 20,000 entries would take 1.6 GB a model; use objective 'kfac' or 'diag'."
    )


def test_statistics_of_other_tensors(vectors: Any) -> None:
    models = {name: {"w": torch.randn(3, 3)} for name in NAMES}
    assert refused(MethodError, "mats", models, statistics=vectors[1]) == (
        "Method 'mats' with objective 'kfac' needs inputs of linear layers and gradients of their outputs (K-FAC "
        "factors), and the statistics have them for none of the 1 tensors that all models share; collect them again "
        "from these models."
    )


def test_lora_factors_are_not_solved_for(statistics: Any) -> None:
    models = {name: {"q.lora_A.weight": torch.ones(2, 4), "q.lora_B.weight": torch.ones(4, 2)} for name in NAMES}
    assert refused(MethodError, "mats", models, statistics=statistics) == (
        "Tensor 'q.lora_A.weight' is one factor of a LoRA adapter, and factors cannot be solved for one by one; give "
        "the adapters as folders with their base, so that their products are merged."
    )


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
