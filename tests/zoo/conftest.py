"""A tiny random base and two tiny tasks, so that a whole zoo is built in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import Dinov2Config, Dinov2Model

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Dinov2Model in a folder, float16, pictures at 28 px."""
    torch.manual_seed(3)
    module = Dinov2Model(Dinov2Config(**TINY, use_mask_token=False))
    folder = tmp_path_factory.mktemp("base") / "tiny"
    folder.mkdir()
    save_file({n: t.half().contiguous() for n, t in module.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "dinov2", **TINY}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 28, "width": 28}}))
    return folder


@pytest.fixture(scope="session")
def tiny_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``shades`` (grey) and ``tints`` (colour): easy tasks in bare ``.npz`` files, without a validation split."""
    folder, rng = tmp_path_factory.mktemp("tasks"), np.random.default_rng(0)

    def shades(n: int) -> tuple[np.ndarray, np.ndarray]:
        y = (np.arange(n) % 2).astype(np.uint8)
        return (rng.integers(0, 100, (n, 16, 16)) + 140 * y[:, None, None]).astype(np.uint8), y

    def tints(n: int) -> tuple[np.ndarray, np.ndarray]:
        y = (np.arange(n) % 3).astype(np.uint8)
        x = rng.integers(0, 100, (n, 16, 16, 3))
        x[np.arange(n), :, :, y] += 140
        return x.astype(np.uint8), y

    for name, make, classes in (("shades", shades, ["dark", "bright"]), ("tints", tints, ["red", "green", "blue"])):
        x, y = make(120)
        xt, yt = make(30)
        np.savez_compressed(
            folder / f"{name}.npz", x_train=x, y_train=y, x_test=xt, y_test=yt, classes=np.array(classes),
            source=np.array("made up"), licence=np.array("CC0"),
        )  # fmt: skip
    return folder
