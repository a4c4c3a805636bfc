"""A module made ready for statistics, and put back as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def prepared(module: nn.Module, dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Within the block the module is in evaluation mode, its real tensors are ``dtype`` on ``device``, its parameters
    need no gradient, and nothing around it (autocast, TF32, inference mode, no_grad) interferes. Tensors are exchanged,
    not overwritten: what was there is put back.
    """
    training = [part for part in module.modules() if part.training]
    parameters = [(p, p.data, p.requires_grad, p.grad) for p in module.parameters()]
    buffers = [(part, key, value) for part in module.modules() for key, value in part._buffers.items()]
    moved: dict[int, Tensor] = {}

    def ready(t: Tensor) -> Tensor:
        if id(t) not in moved:
            moved[id(t)] = t.to(device, dtype if t.is_floating_point() else t.dtype)
        return moved[id(t)]

    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            module.eval()
            for parameter, data, _, _ in parameters:
                parameter.requires_grad_(False)
                parameter.grad = None
                parameter.data = ready(data)
            for part, key, value in buffers:
                part._buffers[key] = None if value is None else ready(value)
            yield
        finally:
            torch.set_float32_matmul_precision(precision)
            for parameter, data, needs, gradient in parameters:
                parameter.grad = None
                parameter.data = data
                parameter.requires_grad_(needs)
                parameter.grad = gradient
            for part, key, value in buffers:
                part._buffers[key] = value
            for part in training:
                part.training = True
