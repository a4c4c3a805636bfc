"""Gradient surgery on any vectors, by their inner products alone: what is projected stays in their span."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

#: Entries of all vectors together that are looked at at once, in float64: 2 MiB.
_TOGETHER = 1 << 18


def gram(rows: Sequence[Tensor], origin: Tensor | None = None) -> Tensor:
    """⟨x_i − origin, x_j − origin⟩ over all entries of T tensors of one shape: [T, T], float64, on the CPU.

    Grams of several tensors add up to that of the whole models. Differences are taken in the tensors' own dtype, as
    kernels take them; products are float64 where the device has it.
    """
    dtype = torch.float32 if rows[0].device.type == "mps" else torch.float64
    flat = [row.reshape(-1) for row in rows]
    start = None if origin is None else origin.reshape(-1)
    width = max(1, _TOGETHER // len(flat))
    total = torch.zeros(len(flat), len(flat), dtype=torch.float64)
    for at in range(0, flat[0].numel(), width):
        part = torch.stack([row[at : at + width] for row in flat])
        if start is not None:
            part -= start[at : at + width]
        part = part.to(dtype)
        total += (part @ part.T).to("cpu", torch.float64)
    return total


def projected(gram: Tensor, orders: Sequence[Sequence[int]]) -> Tensor:
    """PCGrad (Yu et al., 2020, algorithm 1) in the coordinates of the T vectors themselves.

    For every vector i, in turn for each j of ``orders[i]``: where the vector as it is by now has a negative inner
    product with the *original* τ_j, it loses its part along τ_j, τ_i ← τ_i − (⟨τ_i, τ_j⟩ / ‖τ_j‖²) τ_j. Zero vectors,
    and i itself, are passed over.

    Args:
        gram: ⟨τ_i, τ_j⟩, [T, T], float64.
        orders: for each i the others, in the order in which they are met.

    Returns:
        C, [T, T], float64: τ_i' = Σ_j C_ij τ_j.
    """
    # NumPy: for so few numbers torch's overhead is most of the time.
    products = np.asarray(gram.cpu(), dtype=np.float64)
    rows = np.eye(len(products))
    for i, (row, order) in enumerate(zip(rows, orders, strict=True)):
        for j in order:
            product, square = float(row @ products[:, j]), float(products[j, j])
            if j != i and product < 0 < square:
                row[j] -= product / square
    return torch.from_numpy(rows)
