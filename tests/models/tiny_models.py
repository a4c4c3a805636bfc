"""Small random models, saved as their own libraries save them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

DINO = {"model_type": "dinov2", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 56, "patch_size": 14}  # fmt: skip
VISION = {"hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 3,
          "image_size": 28, "patch_size": 14}  # fmt: skip
TEXT = {"hidden_size": 40, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 5,
        "vocab_size": 49408, "max_position_embeddings": 20, "eos_token_id": 49407}  # fmt: skip


def folder_of(folder: Path, state: Mapping[str, torch.Tensor], config: Mapping[str, Any], **files: Any) -> Path:
    """A checkpoint folder: config, one safetensors file, and further JSON files."""
    folder.mkdir(parents=True, exist_ok=True)
    clip = "model_cfg" in config
    (folder / ("open_clip_config.json" if clip else "config.json")).write_text(json.dumps(config))
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / ("open_clip_model.safetensors" if clip else "model.safetensors"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def random_clip(activation: str = "quick_gelu") -> torch.nn.Module:
    """A random CLIPModel whose biases and norms are random as well, so that every tensor matters."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(2)
    config = CLIPConfig(
        vision_config={**VISION, "hidden_act": activation},
        text_config={**TEXT, "hidden_act": activation},
        projection_dim=24,
    )
    model = CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def clip_config(activation: str = "quick_gelu") -> dict[str, Any]:
    return {"model_type": "clip", "projection_dim": 24, "architectures": ["CLIPModel"],
            "vision_config": {**VISION, "hidden_act": activation},
            "text_config": {**TEXT, "hidden_act": activation}}  # fmt: skip
