"""DINOv2 vision transformers (Oquab et al. 2023, arXiv 2304.07193) as transformers' ``Dinov2Model`` runs them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import CheckpointError
from .family import Family, choice, flag, integer, number, square
from .preprocess import IMAGENET_MEAN, IMAGENET_STD, MAX_SIDE, Preprocess

_ATTENTION = re.compile(r"attention\.attention\.(query|key|value)\.")
_PROJECTIONS = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}


class Dinov2(Family):
    """Features are the class token after the final layer norm; position embeddings are resized to the pictures."""

    name = "dinov2"
    title = "DINOv2"

    def claims(self, config: Mapping[str, Any]) -> bool:
        return config.get("model_type") == "dinov2"

    def construct(self, config: Mapping[str, Any], names: Collection[str]) -> nn.Module:
        del names
        from transformers import Dinov2Config, Dinov2Model

        width = integer(config, "hidden_size", 768, 1, 16384)
        heads = integer(config, "num_attention_heads", 12, 1, 256)
        if width % heads:
            raise CheckpointError(f"config.json: hidden_size {width} is not a multiple of the {heads} attention heads.")
        return Dinov2Model(
            Dinov2Config(
                hidden_size=width,
                num_attention_heads=heads,
                num_hidden_layers=integer(config, "num_hidden_layers", 12, 1, 256),
                mlp_ratio=integer(config, "mlp_ratio", 4, 1, 64),
                hidden_act=choice(config, "hidden_act", "gelu", ("gelu", "gelu_new", "quick_gelu", "relu", "silu")),
                layer_norm_eps=number(config, "layer_norm_eps", 1e-6, 0.0, 1.0),
                image_size=square(config, "image_size", 224, MAX_SIDE),
                patch_size=square(config, "patch_size", 14, 256),
                num_channels=integer(config, "num_channels", 3, 3, 3),
                qkv_bias=flag(config, "qkv_bias", True),
                use_swiglu_ffn=flag(config, "use_swiglu_ffn", False),
                use_mask_token=False,  # only pre-training masks
                attn_implementation="sdpa",  # type: ignore[call-arg]
            )
        )

    def canonical(self, name: str) -> str:
        name = name.removeprefix("dinov2.")  # Dinov2ForImageClassification keeps the backbone under this name
        name = _ATTENTION.sub(lambda m: f"attention.{_PROJECTIONS[m[1]]}.", name)
        return name.replace("attention.output.dense.", "attention.o_proj.")

    def ignores(self, canonical: str) -> bool:
        return canonical == "embeddings.mask_token" or canonical.startswith("classifier.")

    def preprocess(self, config: Mapping[str, Any], saved: Mapping[str, Any] | None) -> Preprocess:
        patch = square(config, "patch_size", 14, 256)
        side = square(config, "image_size", 224, MAX_SIDE)
        found = Preprocess.read(saved, resolution=side, mean=IMAGENET_MEAN, std=IMAGENET_STD, resize=True)
        if found.resolution < patch:
            raise CheckpointError(
                f"preprocessor_config.json: pictures of {found.resolution} px are smaller than one patch of {patch} px."
            )
        return found

    def width(self, module: nn.Module) -> int:
        return int(module.config.hidden_size)  # type: ignore[union-attr,arg-type]

    def image_features(self, module: nn.Module, pixels: Tensor) -> Tensor:
        return module(pixel_values=pixels).pooler_output


FAMILY = Dinov2()
