"""RegMean's direct solve where a plain inverse goes wrong: singular, nearly singular, too large."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mergelab.engine import plan, stream
from mergelab.methods._direct import solve
from mergelab.methods.regmean import _Largest, _warning
from mergelab.statistics import Block, TaskStatistics

WIDE = torch.float64


def always(_delta: torch.Tensor) -> bool:
    return True


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("left", [False, True])
def test_full_rank_is_the_plain_solution(random: torch.Generator, left: bool) -> None:
    rows = torch.randn(40, 8, generator=random, dtype=WIDE)
    gram = rows.T @ rows / 40
    wanted = torch.randn((8, 5) if left else (5, 8), generator=random, dtype=WIDE)
    found = solve(gram, gram @ wanted if left else wanted @ gram, left=left, ridge=0.0, fits=always, exact=True)
    torch.testing.assert_close(found.delta, wanted, rtol=1e-10, atol=1e-10)
    assert (found.by, found.ridge) == ("cholesky", 0.0)
    assert found.residual < 1e-12
    assert found.delta.is_contiguous()


def test_a_ridge_is_relative_to_the_mean_diagonal_and_pulls_towards_the_start(random: torch.Generator) -> None:
    rows = torch.randn(40, 8, generator=random, dtype=WIDE)
    gram = 1e6 * rows.T @ rows / 40
    b = torch.randn(5, 8, generator=random, dtype=WIDE)
    found = solve(gram, b, left=False, ridge=0.5, fits=always, exact=True)
    raised = gram + 0.5 * gram.diagonal().mean() * torch.eye(8, dtype=WIDE)
    torch.testing.assert_close(found.delta, b @ torch.linalg.inv(raised))


def test_collinear_inputs_do_not_blow_up_in_float32(random: torch.Generator) -> None:
    """Two inputs equal but for 1e-4: `inv` in float32 gives large values without an error, this does not."""
    rows = torch.randn(50, 12, generator=random)
    rows[:, 1] = rows[:, 0] + 1e-4 * torch.randn(50, generator=random)
    gram = rows.T @ rows / 50
    models = torch.randn(3, 20, 12, generator=random)
    right = sum(m @ gram for m in models) / 3 + 1e-6 * torch.randn(20, 12, generator=random)
    found = solve(gram, right, left=False, ridge=1e-8, fits=always)
    assert float((right @ torch.linalg.inv(gram)).abs().max()) > 10
    assert float(found.delta.abs().max()) < 3
    assert found.by == "cholesky" and found.ridge > 1e-8


def test_what_does_not_fit_goes_to_the_eigenvectors_which_keep_the_unseen(random: torch.Generator) -> None:
    basis = torch.linalg.qr(torch.randn(6, 6, generator=random, dtype=WIDE))[0]
    values = torch.tensor([1.0, 0.5, 0.25, 0.1, 0.0, 0.0], dtype=WIDE)
    gram = (basis * values) @ basis.T
    wanted = torch.randn(4, 6, generator=random, dtype=WIDE)
    found = solve(gram, wanted @ gram, left=False, ridge=1e-8, fits=lambda _delta: False, exact=True)
    assert found.by == "eigen"
    seen = basis[:, :4] @ basis[:, :4].T
    torch.testing.assert_close(found.delta, wanted @ seen, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("angle", [0.014, 0.5])
def test_a_solution_much_larger_than_every_model_is_warned_about(angle: float) -> None:
    """Two tasks of one input direction each, nearly parallel, want 1 and -1 there. The one weight that gives both is
    (1, -(1 + cos) / sin), 2 / angle times as large as the models; from 10 times on that is said in the log."""
    away = torch.tensor([math.cos(angle), math.sin(angle)], dtype=WIDE)
    rows = {"ant": torch.tensor([1.0, 0.0], dtype=WIDE), "bee": away}
    models = {name: {"w": sign * rows[name][None]} for name, sign in (("ant", 1), ("bee", -1))}
    statistics = {
        name: TaskStatistics(name, {"w": Block(torch.outer(x, x), rows=1, layout="linear", shape=(1, 2))})
        for name, x in rows.items()
    }
    log: list[Any] = []
    made = plan("regmean", models, parameters={"off_diagonal": 1.0}, dtype="float64", statistics=statistics)
    ((_, out),) = stream(made, log=log.append)
    expected = torch.tensor([[1.0, -(1 + math.cos(angle)) / math.sin(angle)]], dtype=WIDE)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    size = f"{float(expected.norm()):.3g}"
    assert log[0]["warning"] == (f"its norm is {size}, that of the largest model 1" if angle < 0.2 else "")


@pytest.mark.parametrize(
    ("size", "residual", "said"),
    [
        (1.0, 1e-4, ""),
        (1.0, 0.02, "its equations are met to 2.0% only"),
        (30.0, float("nan"), "its norm is 30, that of the largest model 2; its equations are met to nan% only"),
    ],
)
def test_what_looks_wrong_about_a_solution(size: float, residual: float, said: str) -> None:
    models = [torch.full((4,), 0.5), torch.full((4,), 1.0)]  # norms 1 and 2
    assert _warning(size, _Largest(models), residual) == said
