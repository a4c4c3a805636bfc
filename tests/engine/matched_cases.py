"""Small experts with statistics, for the tests of matched methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mergelab.recipe import Recipe
from mergelab.statistics import Block, TaskStatistics

LINEAR = {"block.0.weight": (6, 4), "block.1.weight": (4, 6)}
NAMES = ("ant", "bee")


def psd(size: int, random: torch.Generator) -> Tensor:
    rows = torch.randn(3 * size, size, generator=random)
    return rows.T @ rows / len(rows)


def statistics_of(name: str, seed: int, **more: Any) -> TaskStatistics:
    """K-FAC factors and a diagonal for the two weights, a diagonal for the bias, nothing for the norm."""
    random = torch.Generator().manual_seed(seed)
    blocks = {
        key: Block(psd(shape[1], random), psd(shape[0], random)[None], torch.rand(shape, generator=random), rows=50,
                   examples=5, layout="linear", shape=shape)
        for key, shape in LINEAR.items()
    }  # fmt: skip
    blocks["block.0.bias"] = Block(diagonal=torch.rand(6, generator=random), examples=5, shape=(6,))
    given = {"fisher": "empirical", "split": "val", "examples": 5, "skipped": {"norm": "a norm, no linear layer"}}
    return TaskStatistics(name, blocks, **{**given, **more})


def recipe(zoo: Mapping[str, str], **more: Any) -> Recipe:
    given = {"merge_method": "mats", "base_model": zoo["base"], "models": [{"model": zoo[n], "name": n} for n in NAMES]}
    return Recipe.from_dict({**given, **more})
