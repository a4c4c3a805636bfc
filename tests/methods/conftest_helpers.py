"""Small checkpoints with everything that real ones have: odd shapes, tied weights, buffers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

SHAPES = {
    "scalar": (),
    "one": (1,),
    "vector": (7,),
    "column": (5, 1),
    "row": (1, 6),
    "square": (8, 8),
    "wide.weight": (6, 10),
    "tall.weight": (11, 4),
    "stack": (2, 3, 5),
    "conv.weight": (6, 2, 3, 3),
    "empty": (0, 4),
}


def make_base(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A base with every shape, a buffer of integers, one of booleans, and a tied pair."""
    generator = torch.Generator().manual_seed(1)
    base = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}
    base["steps"] = torch.tensor([3, 1, 2])
    base["mask"] = torch.tensor([True, False])
    base["tied"] = base["square"]
    return base


def make_expert(base: Mapping[str, Tensor], seed: int, size: float = 0.1) -> dict[str, Tensor]:
    """The base plus seeded noise; buffers differ too, so that a merge which averaged them would show."""
    generator = torch.Generator().manual_seed(100 + seed)
    out = {}
    for name, tensor in base.items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator) * size
            out[name] = (tensor.float() + noise).to(tensor.dtype)
        else:
            out[name] = ~tensor if tensor.dtype == torch.bool else tensor + seed + 1
    out["tied"] = out["square"]
    return out
