"""Pictures in batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..errors import TaskError


def checked(images: Tensor | np.ndarray) -> Tensor:
    """Pictures as a tensor; :class:`TaskError` for what is not uint8 [N, H, W] or [N, H, W, 3]."""
    tensor = torch.as_tensor(images)
    colour = tensor.ndim == 4 and tensor.shape[-1] == 3
    if tensor.dtype != torch.uint8 or not (tensor.ndim == 3 or colour):
        raise TaskError(
            f"Pictures must be uint8 of shape [N, H, W] or [N, H, W, 3], found {tensor.dtype} {list(tensor.shape)}."
        )
    return tensor


def batches(lengths: list[int], size: int) -> Iterator[list[tuple[int, int, int]]]:
    """Batches as lists of (set, start, end), ``size`` pictures each except the last."""
    pieces: list[tuple[int, int, int]] = []
    room = size
    for i, length in enumerate(lengths):
        start = 0
        while start < length:
            end = min(length, start + room)
            pieces.append((i, start, end))
            room -= end - start
            start = end
            if room == 0:
                yield pieces
                pieces, room = [], size
    if pieces:
        yield pieces
