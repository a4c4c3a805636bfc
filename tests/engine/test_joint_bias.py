"""A bias solved for with its weight: the least-squares fit with an intercept, the dense Kronecker system, layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mergelab
from mergelab.engine import merge_snapshots, merge_to_folder, merge_to_memory, plan
from mergelab.engine.about_data import about_data
from mergelab.errors import MethodError
from mergelab.statistics import Block, TaskStatistics

NAMES = ("ant", "bee", "cat")
ROWS, IN, OUT = 40, 4, 3


def drawn(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weight, bias, inputs that are not centred, output gradients; float64."""
    random = torch.Generator().manual_seed(seed)
    shapes = ((OUT, IN), (OUT,), (ROWS, IN), (ROWS, OUT))
    weight, bias, x, g = (torch.randn(*shape, generator=random, dtype=torch.float64) for shape in shapes)
    return weight, bias, x + 2, g


def made(layout: str = "linear", *, mean: bool = True) -> tuple[dict[str, Any], dict[str, TaskStatistics]]:
    models, statistics = {}, {}
    for seed, name in enumerate(NAMES):
        weight, bias, x, g = drawn(seed)
        stored = weight.T.contiguous() if layout == "conv1d" else weight
        if layout == "conv":
            stored = weight.view(OUT, 1, 2, 2)
        models[name] = {"fc.weight": stored, "fc.bias": bias, "norm.weight": torch.randn(3) * 0 + seed}
        block = Block(x.T @ x / ROWS, (g.T @ g / ROWS)[None], mean=x.mean(0) if mean else None, rows=ROWS,
                      layout=layout, shape=tuple(stored.shape))  # fmt: skip
        statistics[name] = TaskStatistics(name, {"fc.weight": block}, fisher="empirical", split="val", examples=5)
    return models, statistics


def intercept() -> tuple[Tensor, Tensor]:
    """Least squares over the rows of all tasks with a column of ones: what each expert gives on its own inputs."""
    rows, targets = [], []
    for seed in range(len(NAMES)):
        weight, bias, x, _ = drawn(seed)
        rows.append(torch.cat([x, torch.ones(ROWS, 1, dtype=torch.float64)], 1))
        targets.append(x @ weight.T + bias)
    found = torch.linalg.lstsq(torch.cat(rows), torch.cat(targets)).solution
    return found[:-1].T, found[-1]


@pytest.mark.parametrize("layout", ["linear", "conv1d", "conv"])
def test_regmean_with_biases_is_least_squares_with_an_intercept(layout: str) -> None:
    models, statistics = made(layout)
    exact = {"dtype": "float64", "off_diagonal": 1.0, "ridge": 0.0}
    found = mergelab.merge("regmean", models, statistics=statistics, bias="augment", **exact)
    weight, bias = intercept()
    expected = {"linear": weight, "conv1d": weight.T, "conv": weight.view(OUT, 1, 2, 2)}[layout]
    torch.testing.assert_close(found["fc.weight"], expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found["fc.bias"], bias, rtol=1e-6, atol=1e-8)
    assert torch.equal(found["norm.weight"], torch.ones(3))  # the mean of 0, 1 and 2: still a leftover


def test_kfac_with_biases_is_the_dense_kronecker_system() -> None:
    """Σ (Ã ⊗ G) vec([W | b]) = Σ (Ã ⊗ G) vec([W_t | b_t]) with Ã the second moments of (x, 1)."""
    models, statistics = made()
    found = mergelab.merge(
        "mats", models, statistics=statistics, dtype="float64", iterations=200, rtol=1e-14, bias="augment"
    )
    total, right = 0.0, 0.0
    for seed in range(len(NAMES)):
        weight, bias, x, g = drawn(seed)
        ones = torch.cat([x, torch.ones(ROWS, 1, dtype=torch.float64)], 1)
        dense = torch.kron(g.T @ g / ROWS, ones.T @ ones / ROWS)  # on [W | b] in C order: rows are outputs
        total = total + dense
        right = right + dense @ torch.cat([weight, bias[:, None]], 1).flatten()
    expected = torch.linalg.solve(total, right).view(OUT, IN + 1)
    torch.testing.assert_close(found["fc.weight"], expected[:, :-1], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(found["fc.bias"], expected[:, -1], rtol=1e-7, atol=1e-9)


def test_biases_are_leftovers_unless_asked_and_where_mean_inputs_are_missing() -> None:
    models, statistics = made()
    mean = sum(model["fc.bias"] for model in models.values()) / len(models)
    plain = mergelab.merge("regmean", models, statistics=statistics, dtype="float64")
    torch.testing.assert_close(plain["fc.bias"], mean)
    models, statistics = made(mean=False)
    without = mergelab.merge("regmean", models, statistics=statistics, dtype="float64", bias="augment")
    torch.testing.assert_close(without["fc.bias"], mean)
    assert torch.equal(without["fc.weight"], plain["fc.weight"])


@pytest.mark.parametrize("init", ["average", {"merge_method": "regmean", "parameters": {"bias": "augment"}}])
def test_snapshots_have_both_and_start_from_both(init: Any, tmp_path: Path) -> None:
    models, statistics = made()
    planned = plan("mats", models, None, {"bias": "augment", "iterations": 3}, statistics=statistics, init=init)
    shots = merge_snapshots(planned, (0, 1, 3))
    start = mergelab.merge(init["merge_method"], models, statistics=statistics, **init["parameters"]) if isinstance(
        init, dict) else mergelab.merge("linear", models)  # fmt: skip
    for key in ("fc.weight", "fc.bias"):
        torch.testing.assert_close(shots.state(0)[key], start[key], rtol=1e-5, atol=1e-6)
    last = merge_to_memory(planned)
    assert all(torch.equal(shots.state(3)[key], last[key]) for key in last)
    one = merge_to_memory(planned.with_parameters({"bias": "augment", "iterations": 1}), threads=1)
    assert all(torch.equal(shots.state(1)[key], one[key]) for key in one)


def test_the_log_and_the_check_count_the_bias_as_solved(tmp_path: Path) -> None:
    models, statistics = made()
    planned = plan("mats", models, None, {"bias": "augment"}, statistics=statistics)
    said = json.loads((merge_to_folder(planned, tmp_path / "out") / "mergelab_solve.json").read_text())
    entries = {entry["tensor"]: entry for entry in said["tensors"]}
    assert entries["fc.weight"]["with"] == "fc.bias" and entries["fc.weight"]["shape"] == [OUT, IN]
    assert entries["fc.bias"]["with"] == "fc.weight" and entries["fc.bias"]["by"] == "cg"
    assert said["summary"]["by"] == {"cg": 2, "average": 1}
    assert any("2 of 3 tensors have them" in finding.text for finding in about_data(planned))


def test_without_layers_there_is_no_input_to_add() -> None:
    models, statistics = made()
    with pytest.raises(MethodError) as error:
        mergelab.merge("mats", models, statistics=statistics, objective="identity", bias="augment")
    assert str(error.value) == (
        "Parameter 'bias' of 'mats' is 'augment', which needs objective 'kfac' or 'gram', not 'identity'; leave biases "
        "as leftovers, or choose another objective."
    )
