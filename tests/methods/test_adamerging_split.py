"""What AdaMerging's coefficients multiply: plain task vectors, or each one's share of what TIES keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mergelab.methods.adamerging import adamerging_vectors
from mergelab.methods.context import Context


def shares(taus: list[Tensor], thresholds: list[float], majority: float = 1.0) -> list[list[float]]:
    base = torch.full_like(taus[0], 2.0)
    context = Context("w", survey={"thresholds": thresholds, "majority": majority})
    found = adamerging_vectors(base, [base + tau for tau in taus], split="ties", density=0.4, context=context)
    return [tau.tolist() for tau in found]


def test_the_hand_example_of_the_plus_plus_forms() -> None:
    """By hand: 2 of 5 entries kept (|3|, |−2| and |4|, |2|), signs of the sums + − + +, the rest is 0.

    entry        0     1     2     3     4
    trimmed a    3     0    −2     0     0
    trimmed b    0     0     4     0     2
    sum          3     0     2     0     2     (where it is 0, nothing is left in any case)
    a keeps      3     0     0     0     0     (its −2 has lost the vote)
    b keeps      0     0     4     0     2
    """
    a = torch.tensor([3.0, 1.0, -2.0, 0.5, -0.25])
    b = torch.tensor([-1.0, 0.5, 4.0, -0.5, 2.0])
    assert shares([a, b], [2.0, 2.0]) == [[3.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 4.0, 0.0, 2.0]]


def test_votes_that_cancel_go_to_the_majoritys_sign() -> None:
    a, b = torch.tensor([2.0, -2.0]), torch.tensor([-2.0, 2.0])
    assert shares([a, b], [1.0, 1.0], majority=1.0) == [[2.0, 0.0], [0.0, 2.0]]
    assert shares([a, b], [1.0, 1.0], majority=-1.0) == [[0.0, -2.0], [-2.0, 0.0]]


def test_no_disjoint_mean_is_taken() -> None:
    """The sum of the shares is TIES with combine=sum; its mean would divide by the number that agree."""
    rng = torch.Generator().manual_seed(0)
    taus = [torch.randn(200, generator=rng).double() for _ in range(3)]
    limits = [float(tau.abs().sort().values[-80]) for tau in taus]
    found = torch.tensor(shares(taus, limits), dtype=torch.float64)
    trimmed = torch.stack([torch.where(tau.abs() >= limit, tau, 0.0) for tau, limit in zip(taus, limits, strict=True)])
    sign = trimmed.sum(0).sign()
    expected = torch.where(trimmed.sign() == sign, trimmed, 0.0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_plain_task_vectors_stay_whole() -> None:
    base, expert = torch.ones(3), torch.tensor([1.0, 0.0, 3.0])
    (tau,) = adamerging_vectors(base, [expert], split="none", density=0.2, context=Context("w"))
    assert tau.tolist() == [0.0, -1.0, 2.0]


@pytest.mark.parametrize("count", [1, 3])
def test_the_survey_is_ties_own(count: int) -> None:
    """Thresholds over the whole model, from the method's survey: the smallest of the kept tenth."""
    from mergelab.methods import get

    method = get("adamerging")
    values: Any = method.resolve({"split": "ties", "density": 0.1}, [str(i) for i in range(count)])
    assert method.survey is not None
    survey = method.survey(values, count, torch.float32)
    assert survey is not None
    rng = torch.Generator().manual_seed(1)
    parts = [torch.randn(count, size, generator=rng) for size in (70, 30)]
    for round_ in range(survey.rounds):
        for part in parts:
            base = torch.zeros(part.shape[1])
            survey.collect(round_, survey.look(round_, base, list(part), Context("w")))
        survey.end_round(round_)
    whole = torch.cat(parts, 1).abs().sort(1).values
    assert survey.result()["thresholds"] == pytest.approx(whole[:, -10].tolist(), rel=0, abs=0)
    plain: Any = method.resolve({}, ["a"])
    assert method.survey(plain, 1, torch.float32) is None
