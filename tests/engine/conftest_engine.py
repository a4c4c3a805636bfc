"""Small models for the engine's tests."""

from __future__ import annotations

import torch
from torch import Tensor


def state(seed: int = 0, size: float = 0.0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A tiny model; ``size`` of the noise that fine-tuning added to the common base."""
    base, noise = torch.Generator().manual_seed(0), torch.Generator().manual_seed(100 + seed)
    shapes = {"block.0.weight": (6, 4), "block.0.bias": (6,), "block.1.weight": (4, 6), "norm": (4,)}
    out = {
        name: (torch.randn(shape, generator=base) + size * torch.randn(shape, generator=noise)).to(dtype)
        for name, shape in shapes.items()
    }
    return {**out, "position_ids": torch.arange(5)}
