"""Fixtures of the checkpoint tests: small state dicts, folders in the layouts that exist, a Hub on the loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_standin import HubStandIn


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    """Named tensors of several dtypes and shapes, the odd ones too."""
    seed = torch.Generator().manual_seed(0)
    return {
        "encoder.weight": torch.randn(7, 5, generator=seed),
        "encoder.bias": torch.randn(7, generator=seed).half(),
        "wide": torch.randn(3, 2, 4, generator=seed).bfloat16(),
        "steps": torch.arange(5),
        "flags": torch.tensor([True, False, True]),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "nothing": torch.empty(0, 3),
    }


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubStandIn]:
    """A Hub that answers on the loopback, an empty cache, and a token in the environment that nobody may send."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_TOKEN", "hf_not_to_be_sent")
    with HubStandIn() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server
