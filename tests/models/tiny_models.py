"""Small random models, saved as their own libraries save them."""

from __future__ import annotations

import json
import re
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


def open_clip_state(hf: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same weights under OpenCLIP's names: q, k, v stacked, linear projections transposed."""
    out: dict[str, torch.Tensor] = {}
    for tower, prefix in (("vision_model", "visual.transformer"), ("text_model", "transformer")):
        layers = {int(m[1]) for n in hf if (m := re.match(rf"{tower}\.encoder\.layers\.(\d+)\.", n))}
        for i in layers:
            old, new = f"{tower}.encoder.layers.{i}", f"{prefix}.resblocks.{i}"
            for kind in ("weight", "bias"):
                parts = [hf[f"{old}.self_attn.{x}_proj.{kind}"] for x in "qkv"]
                out[f"{new}.attn.in_proj_{kind}"] = torch.cat(parts)
                out[f"{new}.attn.out_proj.{kind}"] = hf[f"{old}.self_attn.out_proj.{kind}"]
                out[f"{new}.ln_1.{kind}"] = hf[f"{old}.layer_norm1.{kind}"]
                out[f"{new}.ln_2.{kind}"] = hf[f"{old}.layer_norm2.{kind}"]
                out[f"{new}.mlp.c_fc.{kind}"] = hf[f"{old}.mlp.fc1.{kind}"]
                out[f"{new}.mlp.c_proj.{kind}"] = hf[f"{old}.mlp.fc2.{kind}"]
    for new, old in {"visual.ln_pre": "vision_model.pre_layrnorm", "visual.ln_post": "vision_model.post_layernorm",
                     "ln_final": "text_model.final_layer_norm"}.items():  # fmt: skip
        out[f"{new}.weight"], out[f"{new}.bias"] = hf[f"{old}.weight"], hf[f"{old}.bias"]
    out["visual.class_embedding"] = hf["vision_model.embeddings.class_embedding"]
    out["visual.conv1.weight"] = hf["vision_model.embeddings.patch_embedding.weight"]
    out["visual.positional_embedding"] = hf["vision_model.embeddings.position_embedding.weight"]
    out["token_embedding.weight"] = hf["text_model.embeddings.token_embedding.weight"]
    out["positional_embedding"] = hf["text_model.embeddings.position_embedding.weight"]
    out["visual.proj"], out["text_projection"] = hf["visual_projection.weight"].T, hf["text_projection.weight"].T
    out["logit_scale"] = hf["logit_scale"]
    return out


def open_clip_config(activation: str = "quick_gelu") -> dict:
    vision = {"image_size": 28, "patch_size": 14, "width": 48, "layers": 2, "head_width": 16}
    text = {"context_length": 20, "vocab_size": 49408, "width": 40, "heads": 5, "layers": 2}
    cfg = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text, "quick_gelu": activation == "quick_gelu"}
    return {"model_cfg": cfg, "preprocess_cfg": {"mean": [0.48145466, 0.4578275, 0.40821073],
                                                 "std": [0.26862954, 0.26130258, 0.27577711]}}  # fmt: skip
