"""Convolutions whose kernel differs by row."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .active import Pass
from .side import Carrier
from .stacks import ROOM, Matrix

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class ConvRows(Carrier):
    """``nn.Conv1d/2d/3d``.

    Factors: a convolution with the stacked V as kernels, a scaling by the rows' weights, a 1x1 convolution with U.
    Dense parts and grouped convolutions: each row's own kernel, as groups of one convolution.
    """

    matrices: ClassVar[frozenset[str]] = frozenset({"weight"})

    def forward(self, input: Tensor) -> Tensor:
        side = self._side
        now = side.now()
        if now is None:
            return super().forward(input)
        me: Any = self
        weight, bias = self._parameters["weight"], self._parameters["bias"]
        matrix, vector = side.matrix("weight"), side.vector("bias")
        assert weight is not None
        spatial = weight.ndim - 2
        now.check(input, side.where, least=spatial + 2)
        single = input.ndim == spatial + 1  # one row without the batch's dimension
        x = input[None] if single else input
        settings = {"stride": me.stride, "padding": me.padding, "dilation": me.dilation}
        if me.padding_mode != "zeros":
            x = F.pad(x, me._reversed_padding_repeated_twice, mode=me.padding_mode)
            settings["padding"] = 0
        conv = _CONV[spatial]
        plain = bias if vector is None else None
        if matrix is not None and (matrix.dense is not None or me.groups > 1):
            out = _own_kernels(conv, x, weight, matrix, now, settings=settings, groups=me.groups)
            if plain is not None:
                out += plain.view(-1, *(1,) * spatial)
        else:
            out = conv(x, weight, plain, **settings, groups=me.groups)
            if matrix is not None and matrix.a is not None:
                few = conv(x, matrix.a.view(-1, *weight.shape[1:]), None, **settings)
                few *= now.lift(matrix.low_weights(now), 2).view(-1, few.shape[1], *(1,) * spatial)
                out += torch.matmul(matrix.u, few.flatten(2)).view(out.shape)
        if vector is not None:
            out += vector.rows(bias, now).view(-1, out.shape[1], *(1,) * spatial)
        return out[0] if single else out


def _own_kernels(
    conv: Any, x: Tensor, weight: Tensor, matrix: Matrix, now: Pass, *, settings: dict[str, Any], groups: int
) -> Tensor:
    if now.rows == 1:
        return conv(x, matrix.rows(weight, now, 0, 1).reshape(weight.shape), None, **settings, groups=groups)
    step = max(1, ROOM // weight.numel())
    outs = []
    for low in range(0, now.rows, step):
        chunk = x[low : low + step]
        count = len(chunk)
        own = matrix.rows(weight, now, low, low + count).reshape(count * weight.shape[0], *weight.shape[1:])
        merged = chunk.reshape(1, count * x.shape[1], *x.shape[2:])
        out = conv(merged, own, None, **settings, groups=count * groups)
        outs.append(out.view(count, weight.shape[0], *out.shape[2:]))
    return torch.cat(outs) if len(outs) > 1 else outs[0]
