"""TSV-Merge against identities and an SVD-by-SVD version of its definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import mergelab
from mergelab.methods._spectral import polar, top_directions


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tsv(deltas: list[Tensor], name: str = "layer.weight", **parameters: object) -> Tensor:
    base = {name: torch.zeros_like(deltas[0])}
    return mergelab.merge("tsv_m", [{name: delta} for delta in deltas], base, **parameters)[name]  # type: ignore[arg-type]


def reference(deltas: list[Tensor]) -> Tensor:
    """The definition, by full SVDs in float64 (valid while the concatenated factors have full rank)."""
    rank = max(1, min(deltas[0].shape) // len(deltas))
    parts = [torch.linalg.svd(delta.double(), full_matrices=False) for delta in deltas]

    def orthogonal(matrix: Tensor) -> Tensor:
        p, _, q = torch.linalg.svd(matrix, full_matrices=False)
        return p @ q

    u = orthogonal(torch.cat([u[:, :rank] for u, _, _ in parts], 1))
    v = orthogonal(torch.cat([vh[:rank].T for _, _, vh in parts], 1))
    return (u @ torch.diag(torch.cat([s[:rank] for _, s, _ in parts])) @ v.T).float()


def test_one_task_is_its_task_vector_exactly() -> None:
    delta = random(20, 30)
    assert tsv([delta]).equal(delta)


@pytest.mark.parametrize(("rows", "columns", "tasks"), [(24, 36, 3), (40, 16, 4), (17, 17, 2), (5, 9, 7), (64, 200, 8)])
def test_equals_the_definition(rows: int, columns: int, tasks: int) -> None:
    deltas = [random(rows, columns, seed=seed) for seed in range(tasks)]
    if tasks > min(rows, columns):
        pytest.skip("more directions than dimensions: the definition's polar factor is not unique")
    torch.testing.assert_close(tsv(deltas), reference(deltas), rtol=1e-4, atol=1e-5)


def test_low_rank_changes_on_disjoint_directions_are_simply_added() -> None:
    """Nothing interferes, so nothing is lost: the sum of the task vectors comes out."""
    basis_u, _ = torch.linalg.qr(random(40, 12))
    basis_v, _ = torch.linalg.qr(random(50, 12, seed=1))
    deltas = [
        basis_u[:, 4 * t : 4 * t + 4] @ torch.diag(torch.arange(1.0, 5.0)) @ basis_v[:, 4 * t : 4 * t + 4].T
        for t in range(3)
    ]
    torch.testing.assert_close(tsv(deltas), sum(deltas), rtol=1e-5, atol=1e-5)


def test_equal_low_rank_experts_give_that_expert() -> None:
    """Shared directions are counted once: the partial isometry on their span averages the singular values."""
    delta = random(30, 3) @ random(3, 40, seed=1)
    torch.testing.assert_close(tsv([delta, delta, delta]), delta, rtol=1e-4, atol=1e-4)


def test_vectors_are_averaged_and_convolutions_are_matrices() -> None:
    a, b = random(7), random(7, seed=1)
    torch.testing.assert_close(tsv([a, b], "bias"), (a + b) / 2)
    a, b = random(8, 3, 2, 2), random(8, 3, 2, 2, seed=1)
    expected = reference([a.flatten(1), b.flatten(1)]).reshape(a.shape)
    torch.testing.assert_close(tsv([a, b]), expected, rtol=1e-4, atol=1e-5)


def test_projections_and_on_request_embeddings_are_averaged() -> None:
    a, b = random(12, 9), random(12, 9, seed=1)
    mean = (a + b) / 2
    torch.testing.assert_close(tsv([a, b], "text_projection.weight"), mean)
    name = "embeddings.position_embedding.weight"
    torch.testing.assert_close(tsv([a, b], name, embeddings="average"), mean)
    torch.testing.assert_close(tsv([a, b], name), reference([a, b]), rtol=1e-4, atol=1e-5)


def test_scales_with_lambda_and_weights() -> None:
    deltas = [random(12, 9), random(12, 9, seed=1)]
    torch.testing.assert_close(tsv(deltas, lambda_=0.5), 0.5 * tsv(deltas))
    torch.testing.assert_close(tsv(deltas, weight=2.0), 2.0 * tsv(deltas))


@pytest.mark.parametrize("matrix", [random(20, 33), random(33, 20), random(40, 3) @ random(3, 60, seed=1)], ids=str)
def test_directions_are_orthonormal_and_lead(matrix: Tensor) -> None:
    for count in (3, 10):
        u, s, v = top_directions(matrix, count)
        expected = torch.linalg.svdvals(matrix.double())[: len(s)]
        torch.testing.assert_close(s, expected, rtol=1e-8, atol=1e-8)
        assert len(s) == min(count, int(torch.linalg.matrix_rank(matrix)))
        for factor in (u, v):
            assert (factor.T @ factor - torch.eye(len(s))).abs().max() < 1e-7
        torch.testing.assert_close(matrix.double() @ v, u * s, rtol=1e-6, atol=1e-6)


def test_polar_factor_has_orthonormal_columns() -> None:
    columns = torch.nn.functional.normalize(random(30, 12).double(), dim=0)
    found = polar(columns)
    assert (found.T @ found - torch.eye(12)).abs().max() < 1e-10
    p, _, q = torch.linalg.svd(columns, full_matrices=False)
    torch.testing.assert_close(found, p @ q)
