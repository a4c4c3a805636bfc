"""Small checkpoints on disk for the engine's tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest_engine import state
from torch import Tensor

from mergelab.checkpoints import dtype_code, write

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
