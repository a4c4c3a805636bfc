"""Order statistics by digits against sorting."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergelab.methods._kernels import shrink_
from mergelab.methods._select import MagnitudeThresholds, kept_count, kth_smallest


def thresholds(parts: list[torch.Tensor], density: float) -> float:
    select = MagnitudeThresholds([density], parts[0].dtype)
    for round_ in range(select.rounds):
        for part in parts:
            select.collect({0: select.look(round_, 0, part.clone())})
        select.end_round(round_)
    return select.thresholds[0]


numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=25, deadline=None)
@given(st.lists(numbers, min_size=1, max_size=60), st.floats(0.001, 0.999), st.booleans(), st.integers(1, 5))
def test_threshold_of_a_stream_is_the_kth_largest(values: list[float], density: float, wide: bool, pieces: int) -> None:
    whole = torch.tensor(values, dtype=torch.float64 if wide else torch.float32)
    expected = whole.abs().sort(descending=True).values[kept_count(density, len(values)) - 1]
    assert thresholds(list(whole.chunk(pieces)), density) == float(expected)


def test_subnormal_and_huge_magnitudes_are_ordered_too() -> None:
    values = torch.tensor([3e38, -1e-45, 0.0, -0.0, 1e-38, -2e38])
    assert thresholds([values], 1 / 6) == float(values[0])
    assert thresholds([values], 2 / 6 + 1e-9) == float(values[5].abs())
    assert thresholds([values], 4 / 6 + 1e-9) == float(values[1].abs())


def test_counts_follow_the_density() -> None:
    assert [kept_count(d, 10) for d in (0.0, 0.01, 0.25, 0.99, 1.0)] == [0, 1, 2, 9, 10]


def test_kth_smallest_of_several_ranks() -> None:
    values = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0])
    assert kth_smallest(values.clone(), 2, 4) == (2.0, 4.0)
    assert kth_smallest(values.clone(), 5, 1) == (5.0, 1.0)


def test_shrinking_keeps_what_equals_the_threshold() -> None:
    values = torch.tensor([0.1, -0.1, 0.099999, 0.0, 2.0])
    assert (shrink_(values.clone(), float(values[0])) != 0).tolist() == [True, True, False, False, True]
    assert shrink_(values.clone(), 0.0).equal(values)
    assert not shrink_(values.clone(), float("inf")).any()
