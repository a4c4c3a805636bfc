"""SLERP and Model Stock on vectors whose angles are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import mergelab
from mergelab.errors import MethodError


def slerp(a: list[float], b: list[float], **parameters: object) -> Tensor:
    return mergelab.merge("slerp", [{"w": torch.tensor(a)}, {"w": torch.tensor(b)}], **parameters)["w"]  # type: ignore[arg-type]


def test_ends_and_midpoint_on_the_circle() -> None:
    a, b = [1.0, 0.0], [0.0, 1.0]
    assert slerp(a, b, t=0.0).tolist() == a
    assert slerp(a, b, t=1.0).tolist() == pytest.approx(b, abs=1e-7)
    assert slerp(a, b).tolist() == pytest.approx([math.sqrt(0.5)] * 2, rel=1e-6)
    third = slerp(a, b, t=1 / 3)
    assert third.tolist() == pytest.approx([math.cos(math.pi / 6), math.sin(math.pi / 6)], rel=1e-6)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.8])
def test_norm_is_kept_between_vectors_of_one_norm(t: float) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 300, generator=generator)
    b = b * a.norm() / b.norm()
    found = slerp(a.tolist(), b.tolist(), t=t)
    assert float(found.norm()) == pytest.approx(float(a.norm()), rel=1e-5)
    angle = math.acos(float(a @ b / a.norm() ** 2))
    assert float(a @ found / a.norm() ** 2) == pytest.approx(math.cos(t * angle), rel=1e-4)


def test_nearly_parallel_opposite_and_zero_vectors_take_the_straight_line() -> None:
    assert slerp([1.0, 0.01], [1.0, 0.0]).tolist() == pytest.approx([1.0, 0.005])
    assert slerp([2.0, 0.0], [-1.0, 0.0]).tolist() == [0.5, 0.0]
    assert slerp([0.0, 0.0], [2.0, 4.0], t=0.25).tolist() == [0.5, 1.0]
    curved = slerp([1.0, 0.01], [1.0, 0.0], threshold=1.0)
    assert curved.tolist() == pytest.approx([1.0, 0.005], rel=1e-3)
    assert curved.tolist() != slerp([1.0, 0.01], [1.0, 0.0]).tolist()


def test_task_vectors_turn_around_the_base() -> None:
    models = [{"w": torch.tensor([101.0, 100.0])}, {"w": torch.tensor([100.0, 101.0])}]
    base = {"w": torch.tensor([100.0, 100.0])}
    found = mergelab.merge("slerp", models, base, space="task_vectors")["w"]
    assert found.tolist() == pytest.approx([100.0 + math.sqrt(0.5)] * 2, rel=1e-6)
    straight = mergelab.merge("slerp", models, base)["w"]
    assert straight.tolist() == pytest.approx([100.5, 100.5])
    with pytest.raises(MethodError, match="no base is given"):
        mergelab.merge("slerp", models, space="task_vectors")


def stock(deltas: list[Tensor], **parameters: object) -> Tensor:
    base = {"w": torch.zeros_like(deltas[0])}
    return mergelab.merge("model_stock", [{"w": delta} for delta in deltas], base, **parameters)["w"]  # type: ignore[arg-type]


@pytest.mark.parametrize("degrees", [10, 45, 60, 80])
def test_two_models_at_a_known_angle(degrees: float) -> None:
    """t = 2 cos / (1 + cos) for two models (Jang et al., equation 4)."""
    angle = math.radians(degrees)
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([math.cos(angle), math.sin(angle)])
    t = 2 * math.cos(angle) / (1 + math.cos(angle))
    torch.testing.assert_close(stock([a, b]), t * (a + b) / 2, rtol=1e-6, atol=1e-7)


def test_three_models_at_equal_angles() -> None:
    """Three unit vectors e_i + c·1 have one common cosine; t = 3 cos / (1 + 2 cos)."""
    rows = torch.eye(3) + 0.5
    cosine = float(rows[0] @ rows[1] / rows[0].norm() ** 2)
    t = 3 * cosine / (1 + 2 * cosine)
    torch.testing.assert_close(stock(list(rows)), t * rows.mean(0), rtol=1e-6, atol=1e-7)


def test_orthogonal_and_opposed_models_give_the_base() -> None:
    assert stock([torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])]).abs().max() < 1e-7
    assert stock([torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 0.1])]).abs().max() == 0
    # three at 120 degrees: the denominator is zero
    corners = [torch.tensor([math.cos(a), math.sin(a)]) for a in (0.0, 2 * math.pi / 3, 4 * math.pi / 3)]
    assert stock(corners).abs().max() < 1e-6


def test_filter_wise_has_one_angle_per_row() -> None:
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    b = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    # rows: parallel (t = 1), orthogonal (t = 0), one of them zero (cosine taken as 0)
    assert stock([a, b], filter_wise=True).tolist() == [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
