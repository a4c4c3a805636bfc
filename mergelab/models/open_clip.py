"""CLIP in OpenCLIP's layout (open_clip_config.json; Cherti et al. 2023, arXiv 2212.07143): ViT and ResNet towers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError
from .family import Family, Tokenizer, flag, integer, number, square
from .preprocess import CLIP_MEAN, CLIP_STD, MAX_SIDE, Preprocess
from .words import bundled_tokenizer

_WHERE = "open_clip_config.json"
#: Settings that fetch or build something outside open_clip's own towers.
_REFUSED = ("timm_model_name", "hf_model_name", "hf_tokenizer_name")
_FLAGS = ("no_ln_pre", "final_ln_after_pool", "attentional_pool", "embed_cls", "no_causal_mask", "proj_bias",
          "qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")  # fmt: skip
_NUMBERS = ("mlp_ratio", "ls_init_value")
_INTEGERS = ("head_width", "attn_pooler_queries", "attn_pooler_heads", "pad_id", "eos_id", "heads")
_WORDS = {
    "pool_type": ("tok", "avg", "none", "first", "last", "argmax", "eos"),
    "pos_embed_type": ("learnable", "sin_cos_2d"),
    "proj_type": ("linear", "none"),
    "block_type": ("default", "custom"),
}


class OpenClip(Family):
    """``open_clip.model.CLIP`` built from the configuration's model_cfg, with nothing downloaded."""

    name = "open_clip"
    title = "CLIP in the OpenCLIP layout"

    def claims(self, config: Mapping[str, Any]) -> bool:
        return isinstance(config.get("model_cfg"), Mapping)

    def construct(self, config: Mapping[str, Any], names: Collection[str]) -> nn.Module:
        from open_clip.model import CLIP

        model = config["model_cfg"]
        unknown = set(model) - {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text",
                                "init_logit_scale", "init_logit_bias"}  # fmt: skip
        if unknown or model.get("custom_text"):
            what = "custom_text" if not unknown else sorted(unknown)[0]
            raise CheckpointError(f"{_WHERE}: {what!r} is not supported; only plain CLIP models of OpenCLIP are run.")
        bias = "logit_bias" in names
        return CLIP(
            embed_dim=integer(model, "embed_dim", None, 1, 16384, where=_WHERE),
            vision_cfg=_vision(_part(model, "vision_cfg")),
            text_cfg=_text(_part(model, "text_cfg")),
            quick_gelu=flag(model, "quick_gelu", False, where=_WHERE),
            init_logit_bias=0.0 if bias else None,
        )

    def ignores(self, canonical: str) -> bool:
        return canonical in ("attn_mask", "logit_bias") or canonical.endswith("num_batches_tracked")

    def buffer(self, name: str, shape: torch.Size) -> Tensor:
        if name == "attn_mask":  # causal: no token sees a later one
            return torch.full(shape, float("-inf")).triu_(1)
        return super().buffer(name, shape)

    def preprocess(self, config: Mapping[str, Any], saved: Mapping[str, Any] | None) -> Preprocess:
        del saved  # OpenCLIP keeps it in its own configuration
        side = square(_part(config["model_cfg"], "vision_cfg"), "image_size", 224, MAX_SIDE, where=_WHERE)
        own = config.get("preprocess_cfg")
        own = own if isinstance(own, Mapping) else {}
        saved = {"image_mean": own.get("mean", CLIP_MEAN), "image_std": own.get("std", CLIP_STD)}
        return Preprocess.read(saved, resolution=side, mean=CLIP_MEAN, std=CLIP_STD, resize=False)

    def width(self, module: nn.Module) -> int:
        return int(module.visual.output_dim)  # type: ignore[union-attr,arg-type]

    def image_features(self, module: nn.Module, pixels: Tensor) -> Tensor:
        return F.normalize(module.encode_image(pixels), dim=-1)  # type: ignore[operator]

    def image_tower(self, module: nn.Module) -> str | None:
        del module
        return "visual"

    def has_text(self, module: nn.Module) -> bool:
        del module
        return True

    def tokenizer(self, module: nn.Module, folder: Path | None) -> Tokenizer | None:
        del folder
        return bundled_tokenizer(int(module.context_length), int(module.vocab_size))  # type: ignore[arg-type]

    def text_features(self, module: nn.Module, tokens: Tensor) -> Tensor:
        context = int(module.context_length)  # type: ignore[arg-type]
        if tokens.shape[1] < context:
            tokens = F.pad(tokens, (0, context - tokens.shape[1]))
        return module.encode_text(tokens)  # type: ignore[operator]

    def logit_scale(self, module: nn.Module) -> Tensor | None:
        return module.logit_scale  # type: ignore[return-value]


def _part(model: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = model.get(key)
    if not isinstance(part, Mapping):
        raise CheckpointError(f"{_WHERE}: {key} must be an object, found {str(part)[:40]!r}.")
    for name in _REFUSED:
        if part.get(name):
            raise CheckpointError(
                f"{_WHERE}: {key} asks for {name} {str(part[name])[:60]!r}; only OpenCLIP's own ViT and ResNet towers "
                "are built, because others are fetched from elsewhere."
            )
    return part


def _common(part: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that both towers know, each checked; any other is refused rather than dropped."""
    out: dict[str, Any] = {}
    for key, value in part.items():
        if key in _FLAGS:
            out[key] = flag(part, key, False, where=_WHERE)
        elif value is None or key in (*_REFUSED, "output_tokens", "patch_dropout") or key.startswith(("timm_", "hf_")):
            continue
        elif key in _NUMBERS:
            out[key] = number(part, key, 1.0, 0.0, 64.0, where=_WHERE)
        elif key in _INTEGERS:
            out[key] = integer(part, key, 1, 0 if key.endswith("_id") else 1, 1_000_000, where=_WHERE)
        elif key in _WORDS:
            if value not in _WORDS[key]:
                raise CheckpointError(f"{_WHERE}: {key} must be one of {_WORDS[key]}, found {str(value)[:40]!r}.")
            out[key] = value
        elif key in ("norm_kwargs", "act_kwargs"):
            out[key] = _keywords(key, value)
        elif key not in ("width", "layers", "image_size", "patch_size", "context_length", "vocab_size"):
            raise CheckpointError(f"{_WHERE}: the setting {key[:60]!r} is not known, so the model cannot be run.")
    return out


def _keywords(key: str, value: Any) -> dict[str, Any]:
    """``{"eps": 1e-6}`` and ``{"approximate": "tanh"}`` are all that these are used for."""
    good = isinstance(value, Mapping) and all(
        (k == "eps" and isinstance(v, float) and 0 <= v <= 1) or (k == "approximate" and v in ("none", "tanh"))
        for k, v in value.items()
    )
    if not good:
        raise CheckpointError(f"{_WHERE}: {key} may set eps or approximate, found {str(value)[:60]!r}.")
    return dict(value)


def _vision(part: Mapping[str, Any]) -> dict[str, Any]:
    layers: Any = part.get("layers", 12)
    if isinstance(layers, (list, tuple)):
        if len(layers) != 4:
            raise CheckpointError(f"{_WHERE}: a ResNet tower has 4 stages, found {len(layers)}.")
        layers = [integer({"layers": n}, "layers", None, 1, 128, where=_WHERE) for n in layers]
    else:
        layers = integer(part, "layers", 12, 1, 256, where=_WHERE)
    return {
        **_common(part),
        "layers": layers,
        "width": integer(part, "width", 768, 1, 16384, where=_WHERE),
        "image_size": square(part, "image_size", 224, MAX_SIDE, where=_WHERE),
        "patch_size": square(part, "patch_size", 16, 512, where=_WHERE),
    }


def _text(part: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **_common(part),
        "layers": integer(part, "layers", 12, 1, 256, where=_WHERE),
        "width": integer(part, "width", 512, 1, 16384, where=_WHERE),
        "context_length": integer(part, "context_length", 77, 1, 8192, where=_WHERE),
        "vocab_size": integer(part, "vocab_size", 49408, 2, 2_000_000, where=_WHERE),
    }


FAMILY = OpenClip()
