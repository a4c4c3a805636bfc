"""RegMean's closed form without an inverse: Cholesky with a ridge that grows where it must, else eigenvectors.

A bare inverse of a singular Gram matrix returns huge finite numbers without an error, and a pseudo-inverse sets unseen
directions to zero, which wipes the pretrained weights there. Everything here solves for the difference from the start,
so that a ridge and a cut keep the start in directions that no task has seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ._matching import RIDGES

#: Pivots and eigenvalues below this many roundings of the largest are noise.
_ROUNDINGS = 10
#: A solution whose relative residual is larger is not one.
RESIDUAL = 1e-3


@dataclass(frozen=True)
class Direct:
    """δ, how it was found (``cholesky`` or ``eigen``), the relative ridge used, the relative residual."""

    delta: Tensor
    by: str
    ridge: float
    residual: float


def solve(
    gram: Tensor, right: Tensor, *, left: bool, ridge: float, fits: Callable[[Tensor], bool], exact: bool = False
) -> Direct:
    """δ of δ S = b (``left``: S δ = b) for a PSD S [n, n], whose diagonal is changed meanwhile and put back.

    Cholesky of S + r · mean(diag S) · I with r from ``ridge`` up to 1e-4 until the factorisation succeeds with pivots
    above rounding, the residual is small and ``fits(δ)`` (the size of the result); else by eigenvectors, where those
    with eigenvalues that are rounding noise keep δ = 0. ``exact``: S was computed in float64.
    """
    diagonal = gram.diagonal()
    kept = diagonal.clone()
    scale = float(kept.mean())
    b = right.mT if left else right  # rows are what is solved for: half the time of columns
    eps = torch.finfo(torch.float64 if exact else torch.float32).eps
    try:
        for value in [ridge, *(step for step in RIDGES if step > ridge)]:
            torch.add(kept, value * scale, out=diagonal)
            factor, info = torch.linalg.cholesky_ex(gram)
            pivots = factor.diagonal().square()
            if int(info) or float(pivots.min()) <= _ROUNDINGS * eps * float(pivots.max()):
                continue
            half = torch.linalg.solve_triangular(factor.mT, b, upper=True, left=False)
            delta = torch.linalg.solve_triangular(factor, half, upper=False, left=False)
            residual = _residual(gram, delta, b)
            made = delta.mT if left else delta
            if residual <= RESIDUAL and fits(made):
                return Direct(made.contiguous(), "cholesky", value, residual)
    finally:
        diagonal.copy_(kept)
    return _eigen(gram, b, left=left, eps=eps)


def _eigen(gram: Tensor, b: Tensor, *, left: bool, eps: float) -> Direct:
    """b V diag(1/λ or 0) Vᵀ in float64 where the device has it."""
    wide = gram.dtype if gram.device.type == "mps" else torch.float64
    values, vectors = torch.linalg.eigh(gram.to(wide))
    largest = float(values[-1])
    cut = _ROUNDINGS * largest * max(eps, len(values) * torch.finfo(wide).eps)
    seen = values > cut
    inverse = torch.where(seen, 1 / torch.where(seen, values, torch.ones_like(values)), torch.zeros_like(values))
    delta = ((b.to(wide) @ vectors) * inverse) @ vectors.mT
    delta = delta.to(b.dtype)
    residual = _residual(gram, delta, b)
    return Direct((delta.mT if left else delta).contiguous(), "eigen", 0.0, residual)


def _residual(gram: Tensor, delta: Tensor, b: Tensor) -> float:
    """‖v δ S − v b‖ / ‖v b‖ for two fixed random v: the residual at the price of vectors, not of a product."""
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(min(2, len(b)), len(b), generator=generator, dtype=torch.float32).to(b)
    wanted = v @ b
    size = float(torch.linalg.vector_norm(wanted))
    return float(torch.linalg.vector_norm((v @ delta) @ gram - wanted)) / size if size else 0.0
