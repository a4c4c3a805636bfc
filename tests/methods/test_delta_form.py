"""Solving for the difference from the start ends where solving for the weights does, and stops where it should."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest_helpers import psd
from torch import Tensor

import mergelab
from mergelab.statistics import Block, TaskStatistics

IN, OUT, NAMES = 6, 4, ("ant", "bee", "cat")
WIDE = torch.float64


def absolute(a: list[Tensor], g: list[Tensor], models: list[Tensor], steps: int) -> Tensor:
    """Conjugate gradients on Σ G W A = Σ G W_m A from W = 0, in the weights themselves, as the paper's code does."""

    def product(w: Tensor) -> Tensor:
        return sum(gm @ w @ am for am, gm in zip(a, g, strict=True))  # type: ignore[return-value]

    right = sum(gm @ w @ am for am, gm, w in zip(a, g, models, strict=True))
    x = torch.zeros(OUT, IN, dtype=WIDE)
    r = right - product(x)
    p, rho = r.clone(), float((r * r).sum())
    for _ in range(steps):
        if rho**0.5 <= 1e-14 * float(right.norm()):
            break
        q = product(p)
        step = rho / float((p * q).sum())
        x, r = x + step * p, r - step * q
        rho, before = float((r * r).sum()), rho
        p = r + rho / before * p
    return x


@pytest.mark.parametrize("far", [0.0, 1.0, 1e3])
def test_the_delta_form_is_the_absolute_form_at_convergence(far: float) -> None:
    """Wherever the pretrained weights lie: the common part shifts out of the system."""
    random = torch.Generator().manual_seed(4)
    base = far * torch.randn(OUT, IN, generator=random, dtype=WIDE)
    models = [base + 0.1 * torch.randn(OUT, IN, generator=random, dtype=WIDE) for _ in NAMES]
    a, g = [psd(IN, random) for _ in NAMES], [psd(OUT, random) for _ in NAMES]
    expected = absolute(a, g, models, 500)
    statistics = {
        name: TaskStatistics(name, {"w": Block(a[m], g[m][None], rows=9, layout="linear", shape=(OUT, IN))})
        for m, name in enumerate(NAMES)
    }
    states = {name: {"w": model} for name, model in zip(NAMES, models, strict=True)}
    more: dict[str, Any] = {"dtype": "float64", "statistics": statistics, "iterations": 500, "rtol": 1e-13}
    for init in ("average", "base", {"merge_method": "task_arithmetic", "parameters": {"lambda": 0.3}}):
        found = mergelab.merge("mats", states, {"w": base}, init=init, **more)["w"]
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7 * max(1.0, far))


def test_the_stop_does_not_depend_on_what_all_models_share() -> None:
    """The residual is compared with what the experts differ by: moving all of them stops no step earlier."""
    random = torch.Generator().manual_seed(4)
    apart = [0.1 * torch.randn(OUT, IN, generator=random, dtype=WIDE) for _ in NAMES]
    a, g = [psd(IN, random) for _ in NAMES], [psd(OUT, random) for _ in NAMES]
    statistics = {
        name: TaskStatistics(name, {"w": Block(a[m], g[m][None], rows=9, layout="linear", shape=(OUT, IN))})
        for m, name in enumerate(NAMES)
    }
    found = []
    for far in (0.0, 100.0):
        states = {name: {"w": far + tau} for name, tau in zip(NAMES, apart, strict=True)}
        out = mergelab.merge("mats", states, dtype="float64", statistics=statistics, iterations=500, rtol=1e-4)["w"]
        found.append(out - far)
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-9)
    task_vectors = sum(float(tau.norm()) for tau in apart) / len(apart)
    exact = absolute(a, g, apart, 500)
    assert float((found[1] - exact).norm()) < 0.01 * task_vectors
