"""Model Breadcrumbs: how many entries are kept, and which."""

from __future__ import annotations

import pytest
import torch

import mergelab
from mergelab.errors import MethodError

TAU = torch.tensor([0.3, -0.9, 0.1, 1.0, -0.2, 0.5, -0.7, 0.4, 0.8, -0.6])  # magnitudes 0.1 .. 1.0, once each
BASE = {"w": torch.zeros(10)}


def kept(**parameters: float) -> set[float]:
    found = mergelab.merge("breadcrumbs", [{"w": TAU}], BASE, lambda_=1.0, **parameters)["w"]
    assert found[found != 0].equal(TAU[found != 0])
    return {round(float(value), 1) for value in found.abs() if value}


@pytest.mark.parametrize(
    ("drop_low", "drop_high", "expected"),
    [
        (0.0, 0.0, {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0}),
        (0.5, 0.0, {0.6, 0.7, 0.8, 0.9, 1.0}),
        (0.0, 0.2, {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8}),
        (0.3, 0.1, {0.4, 0.5, 0.6, 0.7, 0.8, 0.9}),
        (0.85, 0.007, {0.9, 1.0}),  # the defaults: floor(8.5) below, floor(0.07) above, so nothing is cut off the top
        (0.5, 0.5, set()),
        (1.0, 0.0, set()),
    ],
)
def test_ten_elements(drop_low: float, drop_high: float, expected: set[float]) -> None:
    assert kept(drop_low=drop_low, drop_high=drop_high) == expected


def test_shares_above_one_together_are_refused() -> None:
    with pytest.raises(MethodError, match="together"):
        kept(drop_low=0.7, drop_high=0.4)


def test_masks_are_made_per_tensor_and_summed() -> None:
    base = {"a": torch.zeros(4), "b": torch.zeros(4)}
    first = {"a": torch.tensor([1.0, 2.0, 3.0, 4.0]), "b": torch.tensor([0.01, 0.02, 0.03, 0.04])}
    second = {"a": torch.tensor([-4.0, 3.0, 2.0, 1.0]), "b": torch.zeros(4)}
    found = mergelab.merge("breadcrumbs", [first, second], base, drop_low=0.5, drop_high=0.25, lambda_=0.5)
    assert found["a"].tolist() == [0.0, 1.5, 1.5, 0.0]
    assert found["b"].tolist() == pytest.approx([0.0, 0.0, 0.015, 0.0])


def test_against_percentiles_of_a_large_tensor() -> None:
    tau = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    found = mergelab.merge("breadcrumbs", [{"w": tau}], {"w": torch.zeros(20_000)}, lambda_=1.0)["w"]
    order = tau.abs().argsort()
    expected = torch.zeros(20_000)
    inside = order[17_000 : 20_000 - 140]
    expected[inside] = tau[inside]
    assert found.equal(expected)
