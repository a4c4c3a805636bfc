"""The parameters that a learner's optimiser holds: all that matter, or LoRA's, read back as dense weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .finetune import Settings, adapt, linear_layers
from .learner import Learner, Lesson, State
from .tuning import Tuning


class Adapted:
    """A learner made ready for one course of training; :meth:`close` takes adapters out again.

    ``names``: the tensors of the module that training changes.
    """

    def __init__(self, learner: Learner, lessons: Sequence[Lesson], tuning: Tuning, start: State) -> None:
        self._learner, self._module = learner, learner.module
        learner.load(start)
        matter = learner.look(lessons[0])
        if tuning.tune == "full":
            self.names = matter
            for name, parameter in self._module.named_parameters():
                parameter.requires_grad_(name in set(matter))
            self._lora: dict[str, Any] = {}
        else:
            one = lessons[0].take(torch.tensor([0]))[0]
            with torch.no_grad():
                used = linear_layers(self._module, lambda: learner.features(self._module, one))
            # peft draws LoRA's A from torch's global generator; the trainer has seeded it.
            learner.module = adapt(self._module, Settings(tune="lora", rank=tuning.rank), used)
            self._lora = _lora_layers(self._module)
            self.names = tuple(f"{name}.weight" for name in self._lora)
        self.parameters = [p for p in learner.module.parameters() if p.requires_grad]

    def state(self) -> dict[str, Tensor]:
        """The tensors of ``names`` as they are now, dense, on the CPU."""
        if not self._lora:
            return self._learner.state(self.names)
        with torch.no_grad():
            return {
                f"{name}.weight": (layer.base_layer.weight + layer.get_delta_weight("default")).cpu().contiguous()
                for name, layer in self._lora.items()
            }

    def close(self) -> None:
        """Give the learner its own module back, without adapters; their change is gone."""
        if self._lora and self._learner.module is not self._module:
            self._learner.module.unload()  # type: ignore[operator]
            self._learner.module = self._module


def _lora_layers(module: nn.Module) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: part for name, part in module.named_modules() if isinstance(part, LoraLayer)}
