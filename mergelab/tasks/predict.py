"""Class probabilities of single pictures."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from ..errors import TaskError
from ..models import Model, Weights
from .head import Head


def probabilities(
    model: Model, image: Tensor | np.ndarray, head: Head, *, state: Mapping[str, Tensor] | Weights | None = None
) -> list[list[float]]:
    """Softmax of the head's scores, one list of C numbers per picture.

    Args:
        image: uint8 [N, H, W, 3] or [N, H, W] (see :func:`mergelab.tasks.clean`).
        state: weights to use instead of the model's own, for this call only.

    Raises:
        TaskError: the head does not fit the model's width, or the pictures are not pictures.
    """
    if head.width != model.width:
        raise TaskError(f"The head takes features of width {head.width}, {model.name} gives {model.width}.")
    weights = state if isinstance(state, Weights) else None if state is None else model.prepare(state)
    return head.logits(model.encode(image, weights=weights)).softmax(-1).tolist()
