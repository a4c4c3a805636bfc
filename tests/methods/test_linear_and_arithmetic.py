"""Weight average and task arithmetic against sums written out by hand."""

from __future__ import annotations

import pytest
import torch

import mergelab
from mergelab.errors import MethodError

A = {"w": torch.tensor([1.0, 2.0, 3.0])}
B = {"w": torch.tensor([3.0, 2.0, -1.0])}
BASE = {"w": torch.tensor([1.0, 0.0, 1.0])}


def test_mean_and_weighted_mean() -> None:
    assert mergelab.merge("linear", [A, B])["w"].tolist() == [2.0, 2.0, 1.0]
    assert mergelab.merge("linear", [A, B], weight=[3.0, 1.0])["w"].tolist() == [1.5, 2.0, 2.0]


def test_without_normalising_weights_are_taken_as_they_are() -> None:
    found = mergelab.merge("linear", {"a": A, "b": B}, weight={"b": -1.0, "a": 1.0}, normalize=False)
    assert found["w"].tolist() == [-2.0, 0.0, 4.0]


def test_weights_that_cancel_cannot_be_normalised() -> None:
    with pytest.raises(MethodError, match="add up to 0"):
        mergelab.merge("linear", [A, B], weight=[1.0, -1.0])


def test_task_arithmetic_adds_and_takes_away() -> None:
    # tau_a = (0, 2, 2), tau_b = (2, 2, -2)
    found = mergelab.merge("task_arithmetic", {"a": A, "b": B}, BASE, lambda_=0.5, weight={"a": 1.0, "b": -2.0})
    assert found["w"].tolist() == [1.0 - 2.0, 0.0 + 1.0 - 2.0, 1.0 + 1.0 + 2.0]


def test_mean_of_weights_is_task_arithmetic_with_one_over_t() -> None:
    generator = torch.Generator().manual_seed(0)
    base = {"w": torch.randn(50, generator=generator)}
    models = [{"w": base["w"] + torch.randn(50, generator=generator)} for _ in range(4)]
    mean = mergelab.merge("linear", models)["w"]
    torch.testing.assert_close(mergelab.merge("task_arithmetic", models, base, lambda_=0.25)["w"], mean)


def test_small_changes_survive_half_precision_inputs() -> None:
    """Summed in bfloat16 they would vanish: 1 + 0.004 is 1 there, and so is every partial sum."""
    base = {"w": torch.ones(4, dtype=torch.bfloat16)}
    expert = {"w": torch.full((4,), 1.0078125, dtype=torch.bfloat16)}  # one unit in the last place more
    found = mergelab.merge("task_arithmetic", [expert] * 8, base, lambda_=0.25)["w"]
    assert found.tolist() == [1.015625] * 4
