"""Fixtures over the small random models of :mod:`tiny_models`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import DINO, folder_of


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """``saved(state, config, name="m", **json_files)`` -> folder."""
    return lambda state, config, name="m", **files: folder_of(tmp_path / name, state, config, **files)


@pytest.fixture(scope="session")
def dino() -> torch.nn.Module:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(1)
    return Dinov2Model(Dinov2Config(**{k: v for k, v in DINO.items() if k != "model_type"})).eval()


@pytest.fixture
def pictures() -> torch.Tensor:
    return torch.randint(0, 256, (7, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
