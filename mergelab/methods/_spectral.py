"""The parts of singular value decompositions that spectral methods need, and no more."""

from __future__ import annotations

import torch
from torch import Tensor

#: Singular values below this share of the largest are rounding noise (of a LoRA's product, or of the float32 difference of
#: two checkpoints); their directions are arbitrary and must not take part.
NOISE = 1e-5


def top_directions(matrix: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The leading ``count`` singular triples (U [m, k], S [k], V [n, k]) of a matrix [m, n]; fewer if the rest is noise.

    From the eigenvectors of the smaller Gram matrix in float64, several times as fast as an SVD in float32 and closer:
    squaring costs half the digits of float64, which leaves more than float32 has.
    """
    if matrix.shape[0] > matrix.shape[1]:
        v, s, u = top_directions(matrix.T, count)
        return u, s, v
    if matrix.device.type == "mps":
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        keep = min(count, int((s > NOISE * s[0]).sum()))
        return u[:, :keep], s[:keep], vh[:keep].T
    wide = matrix.double()
    values, vectors = torch.linalg.eigh(wide @ wide.T)  # ascending
    s = values.flip(0)[:count].clamp(min=0).sqrt()
    keep = int((s > NOISE * s[0]).sum())
    s, u = s[:keep], vectors.flip(1)[:, :keep]
    return u, s, (wide.T @ u) / s


def polar(columns: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns to [m, c]: P·Qᵀ of its SVD P·Σ·Qᵀ.

    Where the columns are dependent (c > m, or two experts share a direction) it is the partial isometry on their span: null
    directions are left out instead of being filled with arbitrary ones.
    """
    values, vectors = torch.linalg.eigh(columns.T @ columns)
    inverse = torch.where(values > NOISE**1.5 * values[-1], values, torch.inf).rsqrt()
    return columns @ ((vectors * inverse) @ vectors.T)
