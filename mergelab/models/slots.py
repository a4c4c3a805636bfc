"""The places in a module where its tensors sit, so that they can be exchanged by reference."""

from __future__ import annotations

from torch import Tensor, nn


class Slot:
    """A place in the module where a tensor sits: a parameter's data or a buffer."""

    def __init__(self, owner: nn.Module, key: str) -> None:
        self.owner, self.key = owner, key
        self.is_parameter = key in owner._parameters
        now = self.get()
        self.shape, self.dtype = tuple(now.shape), now.dtype

    def get(self) -> Tensor:
        if self.is_parameter:
            return self.owner._parameters[self.key].data  # type: ignore[union-attr]
        return self.owner._buffers[self.key]  # type: ignore[return-value]

    def set(self, tensor: Tensor) -> None:
        if self.is_parameter:
            self.owner._parameters[self.key].data = tensor  # type: ignore[union-attr]
        else:
            self.owner._buffers[self.key] = tensor


def slots_of(module: nn.Module) -> dict[str, Slot]:
    """Every tensor of the state dict; a tied tensor sits in one parameter and appears under its first name."""
    stored = set(module.state_dict())
    slots: dict[str, Slot] = {}
    for prefix, owner in module.named_modules():
        for key in (*owner._parameters, *owner._buffers):
            name = f"{prefix}.{key}" if prefix else key
            if name in stored:
                slots[name] = Slot(owner, key)
    return slots
