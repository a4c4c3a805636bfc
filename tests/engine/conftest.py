"""Small checkpoints on disk for the engine's tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest_engine import state
from matched_cases import NAMES, statistics_of
from torch import Tensor

from mergelab.checkpoints import dtype_code, load, write
from mergelab.engine import Plan, plan
from mergelab.statistics import TaskStatistics
from mergelab.statistics import write as write_statistics

Store = Callable[..., str]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """``store(name, state, config=None, shard=5e9)`` writes a checkpoint folder and gives its path."""

    def write_state(name: str, tensors: Mapping[str, Tensor], config: Any = None, shard: float = 5e9) -> str:
        plan = {key: (dtype_code(tensor.dtype), tuple(tensor.shape)) for key, tensor in tensors.items()}
        return str(write(tmp_path / name, tensors.items(), plan, config=config, max_shard_bytes=shard))

    return write_state


@pytest.fixture
def zoo(store: Store) -> dict[str, str]:
    """A base and two experts, with a configuration as transformers writes it."""
    config = {"model_type": "tiny", "hidden_size": 4, "torch_dtype": "float32"}
    return {
        "base": store("base", state(), config),
        "ant": store("ant", state(1, 0.05), config),
        "bee": store("bee", state(2, 0.05), config),
    }


@pytest.fixture
def models() -> dict[str, dict[str, Tensor]]:
    return {"ant": state(1, 0.05), "bee": state(2, 0.05)}


@pytest.fixture
def statistics() -> dict[str, TaskStatistics]:
    return {name: statistics_of(name, seed) for seed, name in enumerate(NAMES)}


@pytest.fixture
def made(models: Mapping[str, Any], statistics: Mapping[str, TaskStatistics]) -> Plan:
    return plan("mats", models, state(), {"iterations": 4}, init="base", statistics=statistics)


@pytest.fixture
def folder(zoo: dict[str, str], tmp_path: Path) -> Path:
    """Statistics on disk of the experts on disk."""
    place = tmp_path / "statistics"
    place.mkdir()
    for seed, name in enumerate(NAMES):
        write_statistics(
            statistics_of(name, seed, weights_hash=load(zoo[name]).weights_hash), place / f"{name}.safetensors"
        )
    return place
