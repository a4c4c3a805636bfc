"""From stored pictures to what a model sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import CheckpointError

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

#: No model sees pictures with a longer side than this.
MAX_SIDE = 4096


@dataclass(frozen=True)
class Preprocess:
    """Resize to ``resolution`` (bicubic without antialiasing: tasks are smaller than models), then normalise."""

    resolution: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 pictures [N, H, W] or [N, H, W, 3] -> float32 [N, 3, R, R] on the same device."""
        grey = images.ndim == 3
        pixels = images.float().div_(255)
        pixels = pixels.unsqueeze(1) if grey else pixels.permute(0, 3, 1, 2)
        if pixels.shape[-2:] != (self.resolution, self.resolution):
            pixels = F.interpolate(
                pixels, size=(self.resolution, self.resolution), mode="bicubic", align_corners=False, antialias=False
            )
        pixels = pixels.clamp(0, 1)  # bicubic overshoots at edges
        mean = torch.tensor(self.mean, device=pixels.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(1, 3, 1, 1)
        return (pixels - mean) / std  # a grey channel becomes three by broadcasting

    @classmethod
    def read(
        cls,
        saved: Mapping[str, Any] | None,
        *,
        resolution: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        resize: bool,
    ) -> Preprocess:
        """From a preprocessor_config.json; what it does not say is taken from the arguments.

        ``resize`` says whether its size counts (a model with fixed position embeddings has only one resolution).
        """
        saved = saved or {}
        if resize:
            resolution = _side(saved, resolution)
        return cls(resolution, _triple(saved, "image_mean", mean), _triple(saved, "image_std", std, positive=True))


def _side(saved: Mapping[str, Any], default: int) -> int:
    """The side of the picture that reaches the model: the crop if there is one, else the resize."""
    value: Any = saved.get("crop_size") if saved.get("do_center_crop", True) else None
    value = saved.get("size", default) if value is None else value
    if isinstance(value, Mapping):
        value = value.get("height", value.get("shortest_edge"))
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_SIDE:
        raise CheckpointError(
            f"preprocessor_config.json: size must be a whole number from 1 to {MAX_SIDE}, found {str(value)[:30]!r}."
        )
    return value


def _triple(
    saved: Mapping[str, Any], key: str, default: tuple[float, float, float], *, positive: bool = False
) -> tuple[float, float, float]:
    value = saved.get(key, default)
    good = isinstance(value, (list, tuple)) and len(value) == 3
    good = good and all(isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < 1e3 for v in value)
    if not good or (positive and min(value) < 1e-6):
        raise CheckpointError(f"preprocessor_config.json: {key} must be three numbers, found {str(value)[:60]!r}.")
    return (float(value[0]), float(value[1]), float(value[2]))
