"""Two small experts with statistics of every kind, and how they are spoilt, for what is refused about data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from conftest_engine import state
from torch import Tensor

import mergelab
from mergelab.statistics import Block, TaskStatistics

NAMES = ("ant", "bee")
W = "block.0.weight"
LINEAR = {W: (6, 4), "block.1.weight": (4, 6)}
Change = Callable[[Block], Block]


def experts() -> dict[str, dict[str, Tensor]]:
    return {"ant": state(1, 0.05), "bee": state(2, 0.05)}


def psd(size: int, seed: int = 0) -> Tensor:
    rows = torch.randn(3 * size, size, generator=torch.Generator().manual_seed(seed))
    return rows.T @ rows / len(rows)


def block(shape: tuple[int, int], seed: int) -> Block:
    diagonal = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    full = psd(shape[0] * shape[1], seed)
    return Block(psd(shape[1], seed), psd(shape[0], seed)[None], diagonal, full, rows=50, examples=5, layout="linear",
                 shape=shape)  # fmt: skip


def one(name: str, change: Change | None = None, **said: Any) -> TaskStatistics:
    """Statistics of one task; ``change`` spoils those of the tensor W."""
    blocks = {key: block(shape, NAMES.index(name)) for key, shape in LINEAR.items()}
    if change is not None:
        blocks[W] = change(blocks[W])
    given = {"fisher": "empirical", "split": "val", "examples": 5}
    return TaskStatistics(name, blocks, **{**given, **said})


def both(change: Change | None = None, **said: Any) -> dict[str, TaskStatistics]:
    """Those of both experts; ``bee``'s are the spoilt ones."""
    return {"ant": one("ant"), "bee": one("bee", change, **said)}


def having(**pieces: Tensor) -> Change:
    """These pieces instead."""
    return lambda given: given.with_tensors({**given.tensors, **pieces})


def noting(**said: Any) -> Change:
    """Another count, layout or shape."""
    return lambda given: replace(given, **said)


def spoilt(size: int, place: tuple[int, int], value: float) -> Tensor:
    """A good matrix with one wrong entry."""
    out = torch.eye(size)
    out[place] = value
    return out


def merge(
    method: str = "mats", models: Mapping[str, Any] | None = None, base: Any = None, statistics: Any = both, **more: Any
) -> dict[str, Tensor]:
    """``mergelab.merge`` of the experts with their statistics, where nothing else is said."""
    given = statistics() if callable(statistics) else statistics
    models = experts() if models is None else models
    return mergelab.merge(method, models, base, statistics=given, device="cpu", **more)
