"""Spoilt pictures: what a model meets outside the clean test set, in three strengths.

Four of the corruptions of Hendrycks and Dietterich 2019 (arXiv 1903.12261), written anew for small pictures. Lengths
are those of a picture 32 pixels wide and grow with the picture, so that a larger copy of a picture is spoilt alike.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import TaskError, suggest

#: Strengths 1, 2 and 3. gaussian_noise: standard deviation where white is 1 (ImageNet-C has 0.08 to 0.38, CIFAR-10-C
#: 0.04 to 0.10). blur: standard deviation in pixels of a picture 32 wide (CIFAR-10-C 0.4 to 1.0; ImageNet-C, which is 7
#: times as wide, 1 to 6). contrast: what is left of the distance to the picture's mean (CIFAR-10-C 0.75 to 0.15).
#: pixelate: the width of the coarse picture as a share of the width (ImageNet-C 0.6 to 0.25).
STRENGTHS: dict[str, tuple[float, float, float]] = {
    "gaussian_noise": (0.06, 0.12, 0.2),
    "blur": (0.5, 0.8, 1.2),
    "contrast": (0.5, 0.35, 0.2),
    "pixelate": (0.75, 0.6, 0.45),
}
_WIDTH, _CHUNK = 32, 256


def corruptions() -> tuple[str, ...]:
    """The names of the corruptions."""
    return tuple(STRENGTHS)


@dataclass(frozen=True)
class Corruption:
    """One corruption at one ``severity`` (1, 2 or 3): a function of pictures, for ``corrupt=`` of an evaluation.

    What happens to a picture depends on the picture and on ``seed`` alone, not on its neighbours or their order. Raises
    :class:`~mergelab.errors.TaskError` for a name or severity that there is not, and for what are no pictures.
    """

    name: str
    severity: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.name not in STRENGTHS:
            raise TaskError(f"There is no corruption {str(self.name)[:60]!r}.{suggest(str(self.name), STRENGTHS)}")
        if isinstance(self.severity, bool) or self.severity not in (1, 2, 3):
            raise TaskError(f"The severity of a corruption is 1, 2 or 3, not {self.severity!r}.")

    @property
    def strength(self) -> float:
        """The number of :data:`STRENGTHS` that is meant."""
        return STRENGTHS[self.name][self.severity - 1]

    def __call__(self, images: Tensor) -> Tensor:
        """Pictures uint8 ``[N, H, W, 3]`` or ``[N, H, W]`` (grey), spoilt; fresh, of the same shape and type."""
        if not isinstance(images, Tensor) or images.dtype != torch.uint8 or not _pictures(images):
            found = f"{images.dtype} {list(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
            raise TaskError(f"Pictures to corrupt must be uint8 [N, H, W, 3] or [N, H, W], found {found}.")
        if images.numel() == 0:
            return images.clone()
        chunks = [self._spoil(chunk) for chunk in images.split(_CHUNK)]
        return torch.cat(chunks)

    def _spoil(self, images: Tensor) -> Tensor:
        planes = (images.unsqueeze(-1) if images.ndim == 3 else images).permute(0, 3, 1, 2).float() / 255
        spoilt = getattr(self, f"_{self.name}")(planes, images)
        found = (spoilt.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        return found.reshape(images.shape).contiguous()

    def _gaussian_noise(self, planes: Tensor, images: Tensor) -> Tensor:
        noise = torch.empty_like(planes)
        for i, picture in enumerate(images):
            key = zlib.crc32(picture.contiguous().cpu().numpy().tobytes())
            drawn = np.random.RandomState((key + self.seed) % 2**32).standard_normal(planes[i].numel())
            noise[i] = torch.from_numpy(drawn).reshape(planes[i].shape).to(planes)
        return planes + self.strength * noise

    def _blur(self, planes: Tensor, images: Tensor) -> Tensor:  # noqa: ARG002
        sigma = self.strength * planes.shape[-1] / _WIDTH
        reach = max(1, math.ceil(3 * sigma))
        line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float32) / sigma).square())
        line = (line / line.sum()).to(planes)
        rows = planes.flatten(0, 1).unsqueeze(1)
        rows = F.conv2d(F.pad(rows, (reach, reach, 0, 0), mode="replicate"), line.view(1, 1, 1, -1))
        rows = F.conv2d(F.pad(rows, (0, 0, reach, reach), mode="replicate"), line.view(1, 1, -1, 1))
        return rows.reshape(planes.shape)

    def _contrast(self, planes: Tensor, images: Tensor) -> Tensor:  # noqa: ARG002
        middle = planes.mean((2, 3), keepdim=True)  # of each colour, as the source has it
        return middle + self.strength * (planes - middle)

    def _pixelate(self, planes: Tensor, images: Tensor) -> Tensor:  # noqa: ARG002
        size = [max(1, int(self.strength * side)) for side in planes.shape[2:]]
        return F.interpolate(F.interpolate(planes, size, mode="area"), planes.shape[2:], mode="nearest-exact")


def _pictures(images: Tensor) -> bool:
    return images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)
