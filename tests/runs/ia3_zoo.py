"""The tiny zoo with (IA)³ experts: one base, random vectors for keys, values and the second layer of every MLP."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tasks.tiny_zoo import CLASSES, make_zoo

PREFIX = "base_model.model.encoder.layer"
SHAPES = {"attention.k_proj": (24, 1), "attention.v_proj": (24, 1), "mlp.fc2": (1, 96)}
SETTINGS = {"peft_type": "IA3", "target_modules": ["k_proj", "v_proj", "fc2"], "feedforward_modules": ["fc2"],
            "fan_in_fan_out": False, "inference_mode": True, "modules_to_save": None}  # fmt: skip


def ia3_zoo(folder: Path) -> Path:
    """Experts ``grey`` and ``colour`` as adapters, float16 as the builder writes them."""
    make_zoo(folder)
    for seed, task in enumerate(CLASSES):
        place = folder / "experts" / task
        head = (place / "head.safetensors").read_bytes()
        shutil.rmtree(place)
        write_ia3(place, vectors(seed), str(folder / "base"))
        (place / "head.safetensors").write_bytes(head)
    return folder


def vectors(seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        f"{PREFIX}.{layer}.{module}.ia3_l": (1 + 0.2 * torch.randn(shape, generator=draw)).half()
        for layer in range(2) for module, shape in SHAPES.items()
    }  # fmt: skip


def write_ia3(folder: Path, tensors: dict[str, torch.Tensor], base: str, **settings: Any) -> Path:
    folder.mkdir(parents=True)
    config = {**SETTINGS, "base_model_name_or_path": base, **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder
