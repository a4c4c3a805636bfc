"""A tiny zoo whose two experts differ from the base by known low-rank changes, and the routed recipe over it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

RANK = 2  # of every change


def _tiny(root: Path) -> Any:
    spec = importlib.util.spec_from_file_location("tiny_zoo_of_tasks", root / "tests" / "tasks" / "tiny_zoo.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make(root: Path, folder: Path) -> Path:
    """The zoo of :mod:`tiny_zoo` with its experts moved: every block's matrices by a change of rank ``RANK``."""
    zoo = _tiny(root).make_zoo(folder)
    for seed, expert in enumerate(sorted((zoo / "experts").iterdir())):
        file, rng = expert / "model.safetensors", torch.Generator().manual_seed(seed)
        tensors = load_file(file)
        for name, tensor in tensors.items():
            if tensor.ndim == 2 and "layer." in name:
                rows, columns = tensor.shape
                change = torch.randn(rows, RANK, generator=rng) @ torch.randn(RANK, columns, generator=rng)
                tensors[name] = tensor + 0.05 * change
        save_file(tensors, file)
    return zoo


def recipe(bench: Any, **sections: Any) -> Any:
    from mergelab.routing.recipe import TwinRecipe

    return TwinRecipe.from_dict(
        {
            "merge_method": "linear", "base_model": bench.base,
            "models": [{"model": source, "name": name} for name, source in bench.experts.items()],
            "exclusive": {"rank": 2}, "router": {"kind": "centroid"}, **sections,
        }
    )  # fmt: skip
