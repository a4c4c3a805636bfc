"""Small checkpoints with everything that real ones have: odd shapes, tied weights, buffers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from mergelab.statistics import Block, TaskStatistics, inputs_of, outputs_of

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


#: How the tensors that hold a linear map hold it.
LAYOUTS = {"square": "linear", "wide.weight": "linear", "tall.weight": "conv1d", "conv.weight": "conv"}


def psd(size: int, generator: torch.Generator, rank: int | None = None) -> Tensor:
    """A random positive semi-definite matrix of this rank (default: full), in float64."""
    rows = torch.randn(rank or 2 * size + 2, size, generator=generator, dtype=torch.float64)
    return rows.T @ rows / len(rows)


def make_block(shape: tuple[int, ...], layout: str, generator: torch.Generator, parts: int = 1) -> Block:
    """Random statistics of every kind for a tensor of this shape."""
    size = math.prod(shape)
    factors: dict[str, Tensor] = {}
    if layout:
        wide, tall = inputs_of(shape, layout), outputs_of(shape, layout) // parts
        factors = {
            "inputs": psd(wide, generator).float(),
            "outputs": torch.stack([psd(tall, generator) for _ in range(parts)]).float(),
        }
    diagonal = torch.rand(shape, generator=generator)
    full = psd(size, generator).float() if size <= 16 else None
    return Block(diagonal=diagonal, full=full, rows=99, examples=9, layout=layout, shape=shape, **factors)


def make_statistics(names: Iterable[str]) -> dict[str, TaskStatistics]:
    """Statistics for models like `make_expert`'s, by model name; they depend on the name alone."""
    out = {}
    for name in names:
        generator = torch.Generator().manual_seed(sum(map(ord, name)))
        blocks = {
            tensor: make_block(shape, LAYOUTS.get(tensor, ""), generator)
            for tensor, shape in SHAPES.items()
            if math.prod(shape)
        }
        out[name] = TaskStatistics(name, blocks, fisher="empirical", split="val", examples=9)
    return out
