"""TIES against examples worked out on paper, a brute-force version, and what other libraries were seen to give."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import mergelab


def ties(deltas: list[list[float]], **parameters: object) -> list[float]:
    """TIES of task vectors on a base of zeros."""
    base = {"w": torch.zeros(len(deltas[0]))}
    models = [{"w": torch.tensor(delta)} for delta in deltas]
    return mergelab.merge("ties", models, base, **parameters)["w"].tolist()  # type: ignore[arg-type]


def test_by_hand_with_a_tie_and_exact_zeros() -> None:
    # column 0: 3 + 1 - 2 > 0: mean of 3 and 1; column 1: all agree but one is exactly zero: mean of two;
    # column 2: -4 + 1 + 1 < 0: -4 alone; column 3: 2 - 2 + 0 ties; column 4: nobody moved.
    deltas = [[3.0, -1.0, -4.0, 2.0, 0.0], [1.0, 0.0, 1.0, -2.0, 0.0], [-2.0, -3.0, 1.0, 0.0, 0.0]]
    # elected signs: +, -, -: the majority is minus, so the tie takes -2
    assert ties(deltas, density=1.0) == [2.0, -2.0, -4.0, -2.0, 0.0]
    assert ties(deltas, density=1.0, zero_sum="positive") == [2.0, -2.0, -4.0, 2.0, 0.0]
    assert ties(deltas, density=1.0, combine="sum") == [4.0, -4.0, -4.0, -2.0, 0.0]
    assert ties(deltas, density=1.0, lambda_=0.5) == [1.0, -1.0, -2.0, -1.0, 0.0]


def test_a_majority_of_plus_decides_ties_as_plus() -> None:
    assert ties([[1.0, 1.0, 1.0], [1.0, 1.0, -1.0]], density=1.0) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (
            {"elect": "weighted", "combine": "mean"},
            -0.6,
        ),  # mergekit 0.1.5: sign of the weighted sum, divided by weights
        ({"elect": "unweighted", "combine": "sum"}, 0.2),  # PEFT: unweighted sign; one value agrees, times its weight
        ({"elect": "unweighted", "combine": "mean"}, 1.0),  # the paper's mean of what agrees, weights normalised
    ],
)
def test_what_other_libraries_give(parameters: dict[str, str], expected: float) -> None:
    """x = (1, 1, 1), y = (-0.6, -0.6, -0.6), weights 0.2 and 1, nothing trimmed."""
    found = ties([[1.0] * 3, [-0.6] * 3], weight=[0.2, 1.0], density=1.0, **parameters)
    assert found == pytest.approx([expected] * 3, abs=1e-7)


def test_sum_of_what_agrees_as_fusion_bench() -> None:
    assert ties([[1.0] * 3, [-0.6] * 3], density=1.0, combine="sum") == [1.0] * 3


def test_a_negative_weight_takes_a_task_away() -> None:
    for combine in ("mean", "sum"):
        for elect in ("weighted", "unweighted"):
            assert ties([[1.0, -2.0]], weight=-1.0, density=1.0, combine=combine, elect=elect) == [-1.0, 2.0]


def make(count: int, seed: int = 0) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (30, 7), "b": (1,), "c": (5, 3, 3, 3), "d": (40,)}
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    scale = {"a": 1.0, "b": 5.0, "c": 0.1, "d": 0.3}
    models = [
        {k: v + scale[k] * torch.randn(v.shape, generator=generator) for k, v in base.items()} for _ in range(count)
    ]
    return base, models


def reference(base: dict[str, Tensor], models: list[dict[str, Tensor]], density: float) -> dict[str, Tensor]:
    """TIES over the flattened task vectors, by sorting: the algorithm as the paper states it."""
    flat = torch.stack([torch.cat([(model[k] - base[k]).flatten() for k in base]) for model in models])
    kept = max(1, int(density * flat.shape[1]))
    for row in flat:
        limit = row.abs().sort(descending=True).values[kept - 1]
        row[row.abs() < limit] = 0.0
    sign = flat.sum(0).sign()
    sign[sign == 0] = 1.0 if sign.sum() >= 0 else -1.0
    agree = (flat.sign() == sign) & (flat != 0)
    merged = (flat * agree).sum(0) / agree.sum(0).clamp(min=1)
    out, at = {}, 0
    for name, tensor in base.items():
        out[name] = tensor + merged[at : at + tensor.numel()].reshape(tensor.shape)
        at += tensor.numel()
    return out


@pytest.mark.parametrize("density", [0.0001, 0.03, 0.2, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_trimming_over_the_model_equals_brute_force(density: float, dtype: str) -> None:
    base, models = make(3)
    found = mergelab.merge("ties", models, base, density=density, dtype=dtype, out_dtype="float32")
    for name, tensor in reference(base, models, density).items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-6)


def test_trimming_per_tensor_keeps_something_of_each() -> None:
    base, models = make(1)
    found = mergelab.merge("ties", models, base, density=0.1, trim="tensor")
    changed = {name: int((found[name] != base[name]).sum()) for name in base}
    assert changed == {"a": 21, "b": 1, "c": 13, "d": 4}
    whole = mergelab.merge("ties", models, base, density=0.1, trim="model")
    assert sum(int((whole[name] != base[name]).sum()) for name in base) == int(0.1 * 386)
    assert not (whole["c"] != base["c"]).any()  # its changes are ten times as small


def test_density_per_model() -> None:
    found = ties([[4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0]], density=[1.0, 0.25], combine="sum")
    assert found == [4.0, 3.0, 2.0, 5.0]


def test_density_zero_is_the_base() -> None:
    assert ties([[4.0, 3.0]], density=0.0) == [0.0, 0.0]
    assert ties([[4.0, 3.0]], density=0.0, trim="tensor") == [0.0, 0.0]


def test_entries_equal_to_the_threshold_are_all_kept() -> None:
    for trim in ("model", "tensor"):
        assert ties([[2.0, -2.0, 1.0, 2.0]], density=0.5, trim=trim) == [2.0, -2.0, 0.0, 2.0]
