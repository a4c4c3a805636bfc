"""MaTS from algebra: dense Kronecker products, generalised eigenvectors, quadratic forms, closed forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from conftest_helpers import psd
from torch import Tensor

import mergelab
from mergelab.engine import merge_to_memory, plan, stream
from mergelab.methods._cg import REFRESH, ConjugateGradients, Reference
from mergelab.methods._matching import Diagonal, Full, Gram, Identity, Kfac, System, jacobi, kronecker_mean
from mergelab.statistics import Block, TaskStatistics

IN, OUT, NAMES = 7, 5, ("ant", "bee", "cat")
WIDE = torch.float64


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def weight(random: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=random, dtype=WIDE)


class Problem:
    """Models of one weight ``w`` [out, in] near a common base, with statistics of every kind, in float64."""

    def __init__(self, random: torch.Generator, names: Sequence[str] = NAMES, rank: int | None = None) -> None:
        self.names = names
        self.base = weight(random, OUT, IN)
        self.models = [self.base + 0.1 * weight(random, OUT, IN) for _ in names]
        self.a = [psd(IN, random, rank) for _ in names]
        self.g = [psd(OUT, random) for _ in names]
        self.f = [torch.rand(OUT, IN, generator=random, dtype=WIDE) + 0.01 for _ in names]
        self.c = [psd(OUT * IN, random) for _ in names]

    def statistics(self, **changed: Sequence[Tensor]) -> dict[str, TaskStatistics]:
        a, g = changed.get("a", self.a), changed.get("g", self.g)
        f, c = changed.get("f", self.f), changed.get("c", self.c)
        return {
            name: TaskStatistics(name, {"w": Block(a[m], g[m] if g[m].ndim == 3 else g[m][None], f[m], c[m], rows=9,
                                                   examples=9, layout="linear", shape=(OUT, IN))})
            for m, name in enumerate(self.names)
        }  # fmt: skip

    def merge(
        self, method: str = "mats", statistics: Mapping[str, TaskStatistics] | None = None, **parameters: Any
    ) -> Tensor:
        return self.logged(method, statistics, **parameters)[0]

    def logged(
        self, method: str = "mats", statistics: Mapping[str, TaskStatistics] | None = None, init: Any = None,
        **parameters: Any,
    ) -> tuple[Tensor, dict[str, Any]]:  # fmt: skip
        log: list[Mapping[str, Any]] = []
        models = {name: {"w": model} for name, model in zip(self.names, self.models, strict=True)}
        made = plan(
            method, models, {"w": self.base}, parameters, dtype="float64", init=init,
            statistics=self.statistics() if statistics is None else statistics,
        )  # fmt: skip
        ((_, out),) = stream(made, log=log.append)
        return out, dict(log[0])

    def dense(self, c: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
        """The minimiser from the dense system over the entries of w in C order."""
        weights = weights or [1.0] * len(c)
        total = sum(w * one for w, one in zip(weights, c, strict=True))
        pull = sum(w * (one @ m.reshape(-1)) for w, one, m in zip(weights, c, self.models, strict=True))
        return torch.linalg.solve(total, pull).view(OUT, IN)

    def kron(self) -> list[Tensor]:
        return [torch.kron(g, a) for g, a in zip(self.g, self.a, strict=True)]


@pytest.fixture
def problem(random: torch.Generator) -> Problem:
    return Problem(random)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# ---- operators ----


@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_kfac_is_the_kronecker_product(problem: Problem, random: torch.Generator, alpha: float) -> None:
    factors = [1.0, 0.5, 2.0]
    v = weight(random, OUT, IN)
    dense = 0
    for factor, *pair in zip(factors, problem.g, problem.a, strict=True):
        g, a = (alpha * x + (1 - alpha) * torch.diag(x.diagonal()) for x in pair)
        dense = dense + factor * torch.kron(g, a)
    system = Kfac(factors, problem.g, problem.a, alpha=alpha)
    close(system.apply(v, torch.empty_like(v)).reshape(-1), dense @ v.reshape(-1))
    close(system.diagonal().reshape(-1), dense.diagonal())
    assert abs(system.mean_diagonal() - float(dense.diagonal().mean())) < 1e-12
    assert float(torch.linalg.eigvalsh(dense)[0]) >= -1e-12  # scaled off-diagonals stay positive semi-definite
    # the transposed layout: A V G is the Kronecker product A ⊗ G on the entries of V [in, out]
    turned = Kfac(factors, problem.a, problem.g, alpha=alpha)
    close(turned.apply(v.T.contiguous(), torch.empty(IN, OUT, dtype=WIDE)).T, system.apply(v, torch.empty_like(v)))


def systems(problem: Problem) -> dict[str, tuple[System, list[Tensor]]]:
    """Every operator with its dense C_m over the entries of w."""
    w, eye = [1.0, 0.5, 2.0], torch.eye(OUT, dtype=WIDE)
    return {
        "identity": (Identity(w, problem.base), [torch.eye(OUT * IN, dtype=WIDE)] * 3),
        "diagonal": (Diagonal(w, problem.f, [0.2] * 3), [torch.diag(f.clamp(min=0.2).reshape(-1)) for f in problem.f]),
        "gram": (Gram(w, problem.a, left=False), [torch.kron(eye, a) for a in problem.a]),
        "kfac": (Kfac(w, problem.g, problem.a), problem.kron()),
        "full": (Full(w, problem.c), problem.c),
    }


@pytest.mark.parametrize("kind", ["identity", "diagonal", "gram", "kfac", "full"])
def test_every_operator_against_its_dense_matrix(problem: Problem, random: torch.Generator, kind: str) -> None:
    system, dense = systems(problem)[kind]
    total = sum(w * c for w, c in zip(system.factors, dense, strict=True))
    v = weight(random, OUT, IN)
    close(system.apply(v, torch.empty_like(v)).reshape(-1), total @ v.reshape(-1))
    close(torch.broadcast_to(system.diagonal().reshape(-1) if kind in ("full", "diagonal", "kfac") else
                             torch.broadcast_to(system.diagonal(), (OUT, IN)).reshape(-1), (OUT * IN,)),
          total.diagonal())  # fmt: skip
    right, energy, _ = system.right(problem.models, problem.base)
    gaps = [(m - problem.base).reshape(-1) for m in problem.models]
    close(right.reshape(-1), sum(w * (c @ d) for w, c, d in zip(system.factors, dense, gaps, strict=True)))
    wanted = sum(w * float(d @ c @ d) for w, c, d in zip(system.factors, dense, gaps, strict=True))
    assert abs(energy - wanted) < 1e-9 * wanted
    for m, c in enumerate(dense):
        assert system.bound(m) >= system.factors[m] * float(torch.linalg.eigvalsh(c)[-1]) * (1 - 1e-12)
    system.damp(0.5)
    close(system.apply(v, torch.empty_like(v)).reshape(-1),
          total @ v.reshape(-1) + 0.5 * float(total.diagonal().mean()) * v.reshape(-1))  # fmt: skip


# ---- solutions ----


def test_identity_is_the_mean_in_one_iteration(problem: Problem) -> None:
    for init in ("average", "base", {"merge_method": "ties", "parameters": {"lambda": 1.3}}):
        out, log = problem.logged(objective="identity", iterations=1, init=init)
        close(out, sum(problem.models) / 3)
        assert log["iterations"] == (0 if init == "average" else 1)
    out, log = problem.logged(objective="identity", iterations=50, init="base", weight=[3.0, 1.0, 0.0])
    close(out, (3 * problem.models[0] + problem.models[1]) / 4)
    assert (log["iterations"], log["stopped"]) == (1, "converged")


@pytest.mark.parametrize("floor", [0.0, 0.3])
def test_diagonal_with_jacobi_is_fisher_merging_in_one_iteration(problem: Problem, floor: float) -> None:
    fishers = [f.clamp(min=floor) for f in problem.f]
    expected = sum(f * m for f, m in zip(fishers, problem.models, strict=True)) / sum(fishers)
    out, log = problem.logged(objective="diag", preconditioner="jacobi", iterations=1, init="base", floor=floor)
    close(out, expected, 1e-12)
    assert log["iterations"] == 1
    fisher, entry = problem.logged("fisher", floor=floor)
    close(fisher, expected, 1e-12)
    below = sum(float((f < floor).double().mean()) for f in problem.f) / 3
    assert entry["floored"] == pytest.approx(below)


def test_fisher_with_a_floor_relative_to_each_tasks_mean(problem: Problem) -> None:
    fishers = [f.clamp(min=0.9 * float(f.mean())) for f in problem.f]
    expected = sum(f * m for f, m in zip(fishers, problem.models, strict=True)) / sum(fishers)
    close(problem.merge("fisher", floor_relative=0.9), expected, 1e-12)


@pytest.mark.parametrize("init", ["average", "base", "task_arithmetic", "fisher", "regmean"])
@pytest.mark.parametrize("preconditioner", ["none", "jacobi", "kronecker"])
def test_kfac_is_the_dense_solution_from_any_start(problem: Problem, init: str, preconditioner: str) -> None:
    out, log = problem.logged(iterations=500, rtol=1e-13, init=init, preconditioner=preconditioner, ridge=1e-10)
    close(out, problem.dense(problem.kron()), 1e-8)
    assert log["stopped"] in ("converged", "null direction")


def test_task_weights_are_the_systems(problem: Problem) -> None:
    weights = [1.0, 0.25, 3.0]
    out = problem.merge(iterations=500, rtol=1e-13, weight=weights)
    close(out, problem.dense(problem.kron(), weights), 1e-8)


def generalised(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """λ and V with A V = B V diag(λ) and VᵀBV = I, by the Cholesky factor of B."""
    root = torch.linalg.cholesky(b)
    half = torch.linalg.solve_triangular(root, a, upper=False)
    values, vectors = torch.linalg.eigh(torch.linalg.solve_triangular(root, half.mT, upper=False))
    return values, torch.linalg.solve_triangular(root.mT, vectors, upper=True)


def test_two_models_by_generalised_eigenvectors(random: torch.Generator) -> None:
    """A₁v = λA₂v and G₁u = μG₂u turn both Kronecker products into diagonals: Y_ij = (UᵀBV)_ij / (μ_i λ_j + 1)."""
    problem = Problem(random, NAMES[:2])
    (a1, a2), (g1, g2), (m1, m2) = problem.a, problem.g, problem.models
    lam, v = generalised(a1, a2)
    mu, u = generalised(g1, g2)
    b = g1 @ m1 @ a1 + g2 @ m2 @ a2
    expected = u @ ((u.T @ b @ v) / (mu[:, None] * lam[None, :] + 1)) @ v.T
    close(problem.merge(iterations=500, rtol=1e-13, init="task_arithmetic"), expected, 1e-8)


def test_a_full_block_is_the_dense_solution(problem: Problem) -> None:
    out = problem.merge(objective="block", iterations=500, rtol=1e-13)
    close(out, problem.dense(problem.c), 1e-8)


def test_gram_run_to_convergence_is_regmean(problem: Problem) -> None:
    eye = torch.eye(OUT, dtype=WIDE)
    expected = problem.dense([torch.kron(eye, a) for a in problem.a])
    out = problem.merge(objective="gram", iterations=500, rtol=1e-13, init="task_arithmetic")
    close(out, expected, 1e-8)
    direct, log = problem.logged("regmean", off_diagonal=1.0)
    close(direct, expected, 1e-6)
    assert log["by"] == "cholesky"
    # and what the paper writes, with the weight as [in, out]
    inverse = torch.linalg.inv(sum(problem.a))
    close(expected, (inverse @ sum(a @ m.T for a, m in zip(problem.a, problem.models, strict=True))).T)


def test_unit_output_factors_reduce_kfac_to_regmean(problem: Problem) -> None:
    units = problem.statistics(g=[torch.eye(OUT, dtype=WIDE)] * 3)
    for iterations in (1, 3, 500):
        kfac = problem.merge(statistics=units, iterations=iterations, rtol=1e-13, init="base")
        gram = problem.merge(objective="gram", iterations=iterations, rtol=1e-13, init="base")
        close(kfac, gram, 1e-7)


def test_diagonal_factors_reduce_kfac_to_a_diagonal_objective(problem: Problem) -> None:
    a, g = ([torch.diag(x.diagonal()) for x in side] for side in (problem.a, problem.g))
    fishers = [torch.outer(y.diagonal(), x.diagonal()) for x, y in zip(a, g, strict=True)]
    expected = sum(f * m for f, m in zip(fishers, problem.models, strict=True)) / sum(fishers)
    close(problem.merge(statistics=problem.statistics(a=a, g=g), preconditioner="jacobi", iterations=1), expected, 1e-9)
    close(problem.merge(off_diagonal=0.0, preconditioner="jacobi", iterations=1), expected, 1e-9)


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_off_diagonal_scaling_is_of_the_statistics(problem: Problem, alpha: float) -> None:
    a, g = ([alpha * x + (1 - alpha) * torch.diag(x.diagonal()) for x in side] for side in (problem.a, problem.g))
    scaled = problem.statistics(a=a, g=g)
    for method, more in (("mats", {"iterations": 4}), ("mats", {"objective": "gram"}), ("regmean", {})):
        plain = {"off_diagonal": 1.0, **more}
        close(problem.merge(method, off_diagonal=alpha, **more), problem.merge(method, scaled, **plain), 1e-10)


def test_one_scale_for_all_tasks_changes_nothing_and_one_tasks_own_does(problem: Problem) -> None:
    scaled = problem.statistics(g=[1e3 * g for g in problem.g])
    for iterations in (3, 200):
        close(problem.merge(iterations=iterations), problem.merge(statistics=scaled, iterations=iterations), 1e-9)
    before = problem.merge(iterations=300, rtol=1e-13)
    louder = [g * (1e4 if m == 1 else 1) for m, g in enumerate(problem.g)]
    after = problem.merge(statistics=problem.statistics(g=louder), iterations=300, rtol=1e-13)
    gap = [float((x - problem.models[1]).norm()) for x in (before, after)]
    assert gap[1] < 0.05 * gap[0]
    # the same as a task weight; and trace normalisation takes the scale out again
    close(after, problem.merge(iterations=300, rtol=1e-13, weight=[1.0, 1e4, 1.0]), 1e-6)
    close(problem.merge(statistics=problem.statistics(g=louder), normalize="trace"),
          problem.merge(normalize="trace"), 1e-9)  # fmt: skip


def test_damping_pulls_towards_the_init(problem: Problem) -> None:
    kron = problem.kron()
    total = sum(kron)
    lam = 0.2 * float(total.diagonal().mean())
    pull = sum(c @ m.reshape(-1) for c, m in zip(kron, problem.models, strict=True)) + lam * problem.base.reshape(-1)
    expected = torch.linalg.solve(total + lam * torch.eye(OUT * IN, dtype=WIDE), pull).view(OUT, IN)
    out, log = problem.logged(iterations=500, rtol=1e-13, damping=0.2, init="base")
    close(out, expected, 1e-8)
    delta = (out - problem.base).reshape(-1)
    gaps = [delta - (m - problem.base).reshape(-1) for m in problem.models]
    value = sum(float(d @ c @ d) for c, d in zip(kron, gaps, strict=True)) / 2 + lam * float(delta @ delta) / 2
    assert log["objective"][-1] == pytest.approx(value, rel=1e-9)
    assert float((problem.merge(iterations=500, damping=1e3, init="base") - problem.base).abs().max()) < 1e-3


# ---- the run ----


@pytest.mark.parametrize("objective", ["kfac", "gram", "diag", "block"])
def test_the_objective_never_rises_and_is_what_it_says(problem: Problem, objective: str) -> None:
    out, log = problem.logged(objective=objective, iterations=60, rtol=1e-14, init="base")
    values = log["objective"]
    assert all(after <= before * (1 + 1e-12) + 1e-15 for before, after in pairwise(values))
    eye = torch.eye(OUT, dtype=WIDE)
    dense = {
        "kfac": problem.kron(), "gram": [torch.kron(eye, a) for a in problem.a],
        "diag": [torch.diag(f.reshape(-1)) for f in problem.f], "block": problem.c,
    }[objective]  # fmt: skip

    def j(x: Tensor) -> float:
        gaps = [(x - m).reshape(-1) for m in problem.models]
        return sum(float(d @ c @ d) for c, d in zip(dense, gaps, strict=True)) / 2

    assert values[0] == pytest.approx(j(problem.base), rel=1e-10)
    assert values[-1] == pytest.approx(j(out), rel=1e-8)
    assert len(values) == len(log["residual"]) == log["iterations"] + 1
    assert log["change"] == pytest.approx(log["moved"] / log["task_vector"])
    assert log["moved"] == pytest.approx(float((out - problem.base).norm()))
    taus = [float((m - problem.base).norm()) for m in problem.models]
    assert log["task_vector"] == pytest.approx(sum(taus) / 3)


def test_null_directions_keep_the_init(random: torch.Generator) -> None:
    """With two rows of inputs a task, the models' inputs span six of seven directions; the seventh stays as it was."""
    problem = Problem(random, rank=2)
    values, vectors = torch.linalg.eigh(sum(problem.a))
    unseen = vectors[:, values < 1e-10 * values[-1]]
    assert unseen.shape[1] == 1
    start = problem.base + 0.3 * (sum(problem.models) - 3 * problem.base)
    init = {"merge_method": "task_arithmetic", "parameters": {"lambda": 0.3}}
    for method, more in (("mats", {"iterations": 400, "rtol": 1e-12}), ("regmean", {"off_diagonal": 1.0}),
                         ("mats", {"objective": "gram", "iterations": 400, "rtol": 1e-12})):  # fmt: skip
        out = problem.logged(method, init=init, **more)[0]
        close(out @ unseen, start @ unseen, 1e-9 if method == "mats" else 1e-6)
        assert float((out - start).norm()) > 0.05  # and moved elsewhere
    # anchored pseudo-inverse
    gram = sum(problem.a)
    pull = sum((m - start) @ a for m, a in zip(problem.models, problem.a, strict=True))
    expected = start + pull @ torch.linalg.pinv(gram, rtol=1e-10, hermitian=True)
    close(problem.logged("regmean", init=init, off_diagonal=1.0)[0], expected, 1e-5)
    more = {"objective": "gram", "iterations": 400, "rtol": 1e-13}
    close(problem.logged(init=init, **more)[0], expected, 1e-8)


def test_unseen_directions_keep_the_init_in_float32(random: torch.Generator) -> None:
    """Rounding of the products, divided by a ridge or a tiny eigenvalue, must stay small against the task vectors."""
    wide, tall, models = 64, 20, [torch.randn(20, 64, generator=random) for _ in NAMES]
    start = torch.randn(tall, wide, generator=random)
    rows = [torch.randn(15, wide, generator=random) * torch.logspace(0, -2, wide) for _ in NAMES]
    grams = [(x.T @ x / 15).float() for x in rows]
    statistics = {
        name: TaskStatistics(name, {"w": Block((a + a.T) / 2, psd(tall, random)[None].float(), rows=9,
                                               layout="linear", shape=(tall, wide))})
        for name, a in zip(NAMES, grams, strict=True)
    }  # fmt: skip
    states = {name: {"w": model} for name, model in zip(NAMES, models, strict=True)}
    unseen = torch.linalg.svd(torch.cat(rows).double())[2][45:].T.float()
    for method, more in (("regmean", {"off_diagonal": 1.0}), ("mats", {"iterations": 200})):
        out = mergelab.merge(method, states, statistics=statistics, init={"w": start}, **more)["w"]
        drift = float(((out - start) @ unseen).norm()) / float(((models[0] - start) @ unseen).norm())
        assert drift < 2e-2, method


def test_iterations_past_convergence_do_not_drift(problem: Problem) -> None:
    out, log = problem.logged(iterations=10_000, rtol=1e-14, init="base")
    assert log["iterations"] < 500 and log["stopped"] in ("converged", "null direction")
    close(out, problem.dense(problem.kron()), 1e-7)


def test_no_information_returns_the_init(problem: Problem) -> None:
    none = problem.statistics(a=[torch.zeros(IN, IN, dtype=WIDE)] * 3, g=[torch.zeros(OUT, OUT, dtype=WIDE)] * 3,
                              f=[torch.zeros(OUT, IN, dtype=WIDE)] * 3)  # fmt: skip
    for method, more in (("mats", {}), ("regmean", {}), ("mats", {"objective": "diag"}),
                         ("mats", {"objective": "gram", "preconditioner": "kronecker"}),
                         ("mats", {"normalize": "trace", "preconditioner": "jacobi"}),
                         ("fisher", {"floor": 0.0})):  # fmt: skip
        out, log = problem.logged(method, none, init="base", **more)
        close(out, problem.base, 1e-15)
        assert log["stopped"] == "no information"
    close(problem.merge("fisher", none), sum(problem.models) / 3)  # the floor makes it the mean


def test_a_task_without_information_leaves_it_to_the_others(problem: Problem) -> None:
    quiet = [problem.g[0], 0 * problem.g[1], problem.g[2]]
    kron = [torch.kron(g, a) for g, a in zip(quiet, problem.a, strict=True)]
    out = problem.merge(statistics=problem.statistics(g=quiet), iterations=400, rtol=1e-13, normalize="none")
    close(out, problem.dense(kron), 1e-8)
    for normalize in ("none", "trace"):
        assert problem.merge(statistics=problem.statistics(g=quiet), normalize=normalize).isfinite().all()


def test_equal_experts_return_that_expert(problem: Problem) -> None:
    problem.models = [problem.models[0]] * 3
    for method in ("mats", "regmean", "fisher"):
        out, log = problem.logged(method, init="base")
        assert torch.equal(out, problem.models[0])
        assert log["stopped"] == "experts equal"


def test_the_start_that_is_the_solution_stays(problem: Problem) -> None:
    solution = problem.dense(problem.kron())
    out, log = problem.logged(iterations=50, init={"w": solution})
    assert (log["iterations"], log["stopped"]) == (0, "converged")
    assert torch.equal(out, solution)


def test_zero_iterations_are_the_start(problem: Problem) -> None:
    out, log = problem.logged(iterations=0, init="base")
    assert torch.equal(out, problem.base)
    assert log["stopped"] == "iterations"


# ---- layouts ----


def test_a_fused_projection_is_what_its_slices_are_alone(random: torch.Generator) -> None:
    """Three slices of rows with their own output factors, no cross terms: each slice is a linear layer of its own."""
    parts, rows = 3, 4
    models = {name: {"qkv": weight(random, parts * rows, IN)} for name in NAMES}
    base = {"qkv": weight(random, parts * rows, IN)}
    a = {name: psd(IN, random) for name in NAMES}
    g = {name: torch.stack([psd(rows, random) for _ in range(parts)]) for name in NAMES}
    fused = {
        name: TaskStatistics(name, {"qkv": Block(a[name], g[name], rows=9, layout="linear", shape=(12, IN))})
        for name in NAMES
    }
    whole = mergelab.merge("mats", models, base, dtype="float64", statistics=fused, init="base", iterations=3)["qkv"]
    keys = ("q", "k", "v")

    def apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(zip(keys, state["qkv"].chunk(parts), strict=True))

    alone = {
        name: TaskStatistics(
            name,
            {key: Block(a[name], g[name][i, None], rows=9, layout="linear", shape=(rows, IN))
             for i, key in enumerate(keys)},
        )
        for name in NAMES
    }  # fmt: skip
    split = mergelab.merge(
        "mats", {name: apart(model) for name, model in models.items()}, apart(base), dtype="float64",
        statistics=alone, init="base", iterations=3,
    )  # fmt: skip
    assert torch.equal(whole, torch.cat([split[key] for key in keys]))


def test_other_layouts_are_the_linear_one_in_disguise(problem: Problem) -> None:
    def merged(shape: tuple[int, ...], layout: str, turn: Any, method: str, **more: Any) -> Tensor:
        statistics = {
            name: TaskStatistics(name, {"w": Block(problem.a[m], problem.g[m][None], rows=9, layout=layout,
                                                   shape=shape)})
            for m, name in enumerate(NAMES)
        }  # fmt: skip
        models = {name: {"w": turn(model)} for name, model in zip(NAMES, problem.models, strict=True)}
        out = mergelab.merge(
            method, models, {"w": turn(problem.base)}, dtype="float64", statistics=statistics, init="base", **more
        )
        return out["w"]

    for method, more in (("mats", {"iterations": 4}), ("mats", {"objective": "gram"}), ("regmean", {}),
                         ("mats", {"preconditioner": "kronecker", "off_diagonal": 0.5})):  # fmt: skip
        linear = merged((OUT, IN), "linear", lambda w: w, method, **more)
        turned = merged((IN, OUT), "conv1d", lambda w: w.T.contiguous(), method, **more)
        patch = merged((OUT, IN, 1, 1), "conv", lambda w: w.reshape(OUT, IN, 1, 1), method, **more)
        close(turned.T, linear, 1e-10)
        close(patch.reshape(OUT, IN), linear, 1e-12)


def test_bfloat16_in_and_out_is_computed_in_float32(problem: Problem) -> None:
    narrow = [model.bfloat16() for model in problem.models]
    statistics = {k: TaskStatistics(k, {"w": s.block("w").to(dtype=torch.float32)})
                  for k, s in problem.statistics().items()}  # fmt: skip
    models = {name: {"w": model} for name, model in zip(NAMES, narrow, strict=True)}
    wide = {name: {"w": model["w"].float()} for name, model in models.items()}
    for method in ("mats", "regmean", "fisher"):
        found = mergelab.merge(method, models, statistics=statistics)["w"]
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, mergelab.merge(method, wide, statistics=statistics)["w"].bfloat16())


def test_reduction_is_by_name_not_by_order(random: torch.Generator) -> None:
    shape = (4, 4)
    models = {name: {key: weight(random, *shape) for key in "uvw"} for name in NAMES}
    statistics = {
        name: TaskStatistics(name, {key: Block(psd(4, random), psd(4, random)[None], rows=9, layout="linear",
                                               shape=shape) for key in "uvw"})
        for name in NAMES
    }  # fmt: skip
    straight = mergelab.merge("mats", models, dtype="float64", statistics=statistics)
    mixed = {name: dict(reversed(model.items())) if name == "bee" else model for name, model in models.items()}
    shuffled = dict(reversed(statistics.items()))
    found = mergelab.merge("mats", mixed, dtype="float64", statistics=shuffled)
    assert all(torch.equal(found[key], tensor) for key, tensor in straight.items())


# ---- conjugate gradients alone ----


def run(system: System, right: Tensor, energy: float, steps: int, precondition: Any = None) -> ConjugateGradients:
    size = float(right.norm())
    solver = ConjugateGradients(system, right, energy, Reference(1e-14, size, lambda: size), precondition)
    for _ in range(steps):
        solver.step()
    return solver


def test_the_residual_is_refreshed(random: torch.Generator) -> None:
    """An ill-conditioned system that runs past the refresh in float32 ends at a true residual near its recorded one."""
    size = 60
    basis = torch.linalg.qr(weight(random, size, size))[0]
    c = ((basis * torch.logspace(0, -6, size, dtype=WIDE)) @ basis.T).float()
    c = (c + c.T) / 2
    system = Full([1.0], [c])
    right = (c @ torch.randn(size, generator=random)).contiguous()
    solver = run(system, right, 1.0, 3 * REFRESH)
    assert solver.iterations > REFRESH
    true = float((right - c @ solver.delta).norm())
    assert true <= 5 * solver.residual[-1] + 1e-6 * float(right.norm())


def test_a_curvature_that_is_not_positive_stops_it(random: torch.Generator) -> None:
    c = torch.diag(torch.tensor([1.0, -1.0], dtype=WIDE))
    solver = run(Full([1.0], [c]), torch.tensor([0.0, 1.0], dtype=WIDE), 1.0, 3)
    assert (solver.stopped, solver.iterations) == ("null direction", 0)
    assert not solver.delta.any()


@pytest.mark.parametrize("kind", ["kfac", "gram"])
def test_the_kronecker_preconditioner_takes_fewer_iterations(random: torch.Generator, kind: str) -> None:
    """Factors of one common spectrum: (mean A)⁻¹ ⊗ (mean G)⁻¹ is nearly the inverse."""
    common = [torch.diag(torch.logspace(0, -3, n, dtype=WIDE)) for n in (OUT, IN)]
    g, a = ([c + 1e-4 * psd(len(c), random) for _ in NAMES] for c in common)
    system: System = Kfac([1.0] * 3, g, a) if kind == "kfac" else Gram([1.0] * 3, a, left=False)
    models = [weight(random, OUT, IN) for _ in NAMES]
    right, energy, _ = system.right(models, torch.zeros(OUT, IN, dtype=WIDE))
    counts = {}
    for name, precondition in (("none", None), ("jacobi", jacobi(system)), ("kron", kronecker_mean(system, 1e-10))):
        size = float(right.norm())
        solver = ConjugateGradients(system, right, energy, Reference(1e-8, size, lambda s=size: s), precondition)
        while not solver.stopped:
            solver.step()
        counts[name] = solver.iterations
    assert counts["kron"] < counts["none"] / 2


def test_merge_to_memory_takes_statistics_and_init(problem: Problem) -> None:
    models = {name: {"w": model} for name, model in zip(NAMES, problem.models, strict=True)}
    made = plan("mats", models, {"w": problem.base}, {"iterations": 2}, dtype="float64", init="base",
                statistics=problem.statistics())  # fmt: skip
    assert torch.equal(merge_to_memory(made)["w"], problem.logged(iterations=2, init="base")[0])
    moved = made.with_parameters({"iterations": 0})
    assert torch.equal(merge_to_memory(moved)["w"], problem.base)
    regmean = made.with_parameters({}, method="regmean")
    assert torch.equal(merge_to_memory(regmean)["w"], problem.logged("regmean", init="base")[0])
