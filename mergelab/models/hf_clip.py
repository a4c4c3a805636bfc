"""CLIP (Radford et al. 2021, arXiv 2103.00020) in transformers' layout: the whole model, or its vision tower alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError
from .family import Family, Tokenizer, choice, integer, number, square
from .preprocess import CLIP_MEAN, CLIP_STD, MAX_SIDE, Preprocess
from .words import bundled_tokenizer, folder_tokenizer

_ACTIVATIONS = ("quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu")


class HFClip(Family):
    """``CLIPModel``, ``CLIPVisionModelWithProjection`` and ``CLIPVisionModel``.

    Features are the projected image embedding, L2-normalised. A ``CLIPVisionModel`` has no projection: its features
    are the pooled ones, not normalised, so that a head can bring the projection of the CLIP that it was taken from.
    """

    name = "hf_clip"
    title = "CLIP in the Hugging Face layout"

    def claims(self, config: Mapping[str, Any]) -> bool:
        return config.get("model_type") in ("clip", "clip_vision_model")

    def construct(self, config: Mapping[str, Any], names: Collection[str]) -> nn.Module:
        from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection

        projection = integer(config, "projection_dim", 512, 1, 16384)
        vision = _vision(_part(config, "vision_config"), projection)
        text = any(name.startswith("text_model.") for name in names)
        if config.get("model_type") == "clip" and text:
            settings = CLIPConfig(
                text_config=_text(_part(config, "text_config"), projection),
                vision_config=vision,
                projection_dim=projection,
                attn_implementation="sdpa",  # type: ignore[call-arg]
            )
            return CLIPModel(settings)
        kind = CLIPVisionModelWithProjection if "visual_projection.weight" in names else CLIPVisionModel
        return kind(CLIPVisionConfig(**vision, attn_implementation="sdpa"))  # type: ignore[call-arg]

    def canonical(self, name: str) -> str:
        # transformers 5 writes CLIPVisionModel without the prefix that 4 wrote; no other tower shares these names
        return name.removeprefix("vision_model.")

    def ignores(self, canonical: str) -> bool:
        return canonical.endswith("embeddings.position_ids")  # a buffer that older checkpoints stored

    def buffer(self, name: str, shape: torch.Size) -> Tensor:
        if name.endswith("position_ids"):
            return torch.arange(shape[-1]).expand(shape).clone()
        return super().buffer(name, shape)

    def preprocess(self, config: Mapping[str, Any], saved: Mapping[str, Any] | None) -> Preprocess:
        side = square(_part(config, "vision_config"), "image_size", 224, MAX_SIDE)
        return Preprocess.read(saved, resolution=side, mean=CLIP_MEAN, std=CLIP_STD, resize=False)

    def width(self, module: nn.Module) -> int:
        projection = getattr(module, "visual_projection", None)
        return int(projection.out_features if projection is not None else module.config.hidden_size)  # type: ignore

    def image_features(self, module: nn.Module, pixels: Tensor) -> Tensor:
        projection = getattr(module, "visual_projection", None)
        if projection is None:
            return module(pixel_values=pixels).pooler_output
        tower = module.get_submodule("vision_model")
        return F.normalize(projection(tower(pixel_values=pixels).pooler_output), dim=-1)

    def image_tower(self, module: nn.Module) -> str | None:
        return "vision_model" if hasattr(module, "vision_model") else None

    def has_text(self, module: nn.Module) -> bool:
        return hasattr(module, "text_model")

    def tokenizer(self, module: nn.Module, folder: Path | None) -> Tokenizer | None:
        settings = module.config.text_config  # type: ignore[union-attr]
        context, vocabulary = int(settings.max_position_embeddings), int(settings.vocab_size)  # type: ignore
        return folder_tokenizer(folder, context, vocabulary) or bundled_tokenizer(context, vocabulary)

    def text_features(self, module: nn.Module, tokens: Tensor) -> Tensor:
        # attention is causal and the end token is pooled, so what pads the right side changes nothing
        return module.text_projection(module.text_model(input_ids=tokens).pooler_output)  # type: ignore

    def logit_scale(self, module: nn.Module) -> Tensor | None:
        return getattr(module, "logit_scale", None)


def _part(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A tower's configuration: the nested one of a whole model, or the configuration itself of a tower."""
    if config.get("model_type") != "clip":
        return config
    part = config.get(key) or {}
    if not isinstance(part, Mapping):
        raise CheckpointError(f"config.json: {key} must be an object, found {str(part)[:40]!r}.")
    legacy = config.get(f"{key}_dict")  # what transformers wrote at first; it wins where both are there
    return {**part, **legacy} if isinstance(legacy, Mapping) else part


def _tower(config: Mapping[str, Any], width: int, inner: int, heads: int, where: str) -> dict[str, Any]:
    width = integer(config, "hidden_size", width, 1, 16384, where=where)
    heads = integer(config, "num_attention_heads", heads, 1, 256, where=where)
    if width % heads:
        raise CheckpointError(f"{where}: hidden_size {width} is not a multiple of the {heads} attention heads.")
    return {
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": integer(config, "intermediate_size", inner, 1, 131072, where=where),
        "num_hidden_layers": integer(config, "num_hidden_layers", 12, 1, 256, where=where),
        "hidden_act": choice(config, "hidden_act", "quick_gelu", _ACTIVATIONS, where=where),
        "layer_norm_eps": number(config, "layer_norm_eps", 1e-5, 0.0, 1.0, where=where),
    }


def _vision(config: Mapping[str, Any], projection: int) -> dict[str, Any]:
    where = "config.json, vision"
    return {
        **_tower(config, 768, 3072, 12, where),
        "projection_dim": projection,
        "image_size": square(config, "image_size", 224, MAX_SIDE, where=where),
        "patch_size": square(config, "patch_size", 32, 512, where=where),
        "num_channels": integer(config, "num_channels", 3, 3, 3, where=where),
    }


def _text(config: Mapping[str, Any], projection: int) -> dict[str, Any]:
    where = "config.json, text"
    vocabulary = integer(config, "vocab_size", 49408, 2, 2_000_000, where=where)
    end = config.get("eos_token_id", 49407)
    return {
        **_tower(config, 512, 2048, 8, where),
        "projection_dim": projection,
        "vocab_size": vocabulary,
        "max_position_embeddings": integer(config, "max_position_embeddings", 77, 1, 8192, where=where),
        # 2 is what early configurations say although the tokenizer's end is the last token; transformers knows that
        "eos_token_id": end if isinstance(end, int) and 0 <= end < vocabulary else vocabulary - 1,
        "bos_token_id": None,
        "pad_token_id": None,
    }


FAMILY = HFClip()
