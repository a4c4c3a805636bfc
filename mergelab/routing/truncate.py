"""Low-rank factors of one matrix: exact, or found quickly where few directions are wanted. Signs are fixed, so that
the same matrix gives the same file."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import RoutingError

#: Singular values below this share of the largest are rounding noise of a float32 difference of two checkpoints.
NOISE = 1e-7
#: Directions beyond the wanted ones, and passes, with which a subspace is looked for. On matrices without any structure
#: (the hardest) the error is then within 1 % of the optimum.
_SPARE, _PASSES = 12, 3
#: A subspace is looked for where it is at most this share of the smaller side; beyond, a decomposition is as quick.
_FEW = 0.2


def low_rank(matrix: Tensor, rank: int, *, exact: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """The leading ``rank`` singular triples (U ``[m, r]``, s ``[r]``, V ``[r, n]``) of a float32 matrix ``[m, n]``;
    fewer where only noise is left.

    Without ``exact``, a low rank is found by subspace iteration from fixed random directions (Halko, Martinsson and
    Tropp 2011, algorithm 4.4 with 3 passes), which costs a few products of the matrix instead of a decomposition.
    """
    few = rank + _SPARE <= _FEW * min(matrix.shape)
    u, s, v = _subspace(matrix, rank + _SPARE) if few and not exact else singular(matrix)
    keep = min(rank, _above_noise(s))
    return _signed(u[:, :keep], s[:keep], v[:keep])


def by_energy(matrix: Tensor, energy: float) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`low_rank` with the smallest rank whose squared singular values make up ``energy`` of their sum."""
    u, s, v = singular(matrix)
    shares = s.double().square().cumsum(0)
    total = float(shares[-1])
    keep = 0 if total == 0 else int((shares < energy * total * (1 - 1e-12)).sum()) + 1
    keep = min(keep, _above_noise(s))
    return _signed(u[:, :keep], s[:keep], v[:keep])


def singular(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All singular triples, by LAPACK in float32, and in float64 on the CPU where that does not converge."""
    try:
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    except RuntimeError:  # includes LinAlgError; some matrices do not converge in float32
        try:
            u, s, v = torch.linalg.svd(matrix.double().cpu(), full_matrices=False)
        except RuntimeError as error:
            raise RoutingError(
                f"A matrix of shape {list(matrix.shape)} cannot be decomposed ({str(error)[:120]}); store it whole."
            ) from None
        u, s, v = (t.to(matrix) for t in (u, s, v))
    return u, s, v


def _subspace(matrix: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    if matrix.shape[0] < matrix.shape[1]:
        u, s, v = _subspace(matrix.T, size)
        return v.T, s, u.T
    start = torch.randn(matrix.shape[1], size, generator=torch.Generator().manual_seed(0))
    basis = _orthonormal(matrix @ start.to(matrix))
    for _ in range(_PASSES):
        basis = _orthonormal(matrix @ _orthonormal(matrix.T @ basis))
    small, s, v = singular(basis.T @ matrix)
    return basis @ small, s, v


def _orthonormal(columns: Tensor) -> Tensor:
    return torch.linalg.qr(columns)[0]


def _above_noise(s: Tensor) -> int:
    return int((s > NOISE * s[0]).sum()) if len(s) else 0


def _signed(u: Tensor, s: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each column of u gets the sign that makes its largest entry positive."""
    if not len(s):
        return u, s, v
    largest = u.abs().argmax(0)
    sign = torch.where(u[largest, torch.arange(len(s), device=u.device)] < 0, -1.0, 1.0)
    return u * sign, s, v * sign[:, None]
