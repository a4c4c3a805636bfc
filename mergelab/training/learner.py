"""What is trained: a module, how inputs become features, and labelled examples with the head that reads them.

Nothing here knows files, suites or families, so that a picture tower, a text encoder and a toy are trained alike.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import CheckpointError, TaskError
from ..models import Model
from ..tasks import Head

#: Pictures uint8 [N, H, W] or [N, H, W, 3], or a text encoder's tensors [N, L] by name.
Inputs: TypeAlias = Tensor | Mapping[str, Tensor]
#: Features [N, width] of inputs, with gradients of the module's parameters.
Features: TypeAlias = Callable[[nn.Module, Inputs], Tensor]
#: The trained tensors by the module's names; all others are the base's.
State: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Lesson:
    """One task's examples: ``inputs`` of N items, ``labels`` int64 [N], the ``head`` that reads their features.

    ``split`` says where they come from. Raises TaskError when there are none, or labels do not fit inputs and head.
    """

    task: str
    inputs: Inputs
    labels: Tensor
    head: Head
    split: str = "train"

    def __post_init__(self) -> None:
        counts = {len(part) for part in _parts(self.inputs)}
        if counts != {len(self.labels)} or not len(self.labels):
            raise TaskError(
                f"The task {self.task} has {len(self.labels)} labels for {sorted(counts)} inputs; training needs one "
                "label an input, and at least one."
            )
        if int(self.labels.min()) < 0 or int(self.labels.max()) >= self.head.classes:
            raise TaskError(
                f"The labels of {self.task} go from {int(self.labels.min())} to {int(self.labels.max())}, but its head "
                f"has {self.head.classes} classes."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, places: Tensor) -> tuple[Inputs, Tensor]:
        """Inputs and labels at ``places`` int64 [n]."""
        if isinstance(self.inputs, Tensor):
            return self.inputs[places], self.labels[places]
        return {name: part[places] for name, part in self.inputs.items()}, self.labels[places]


class Learner:
    """A module that is trained in place. Not for several threads."""

    def __init__(self, module: nn.Module, features: Features) -> None:
        self.module, self.features = module, features
        self._names: tuple[str, ...] | None = None

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def look(self, lesson: Lesson) -> tuple[str, ...]:
        """The parameters that the features depend on, found by one example's gradient and remembered.

        A text side that pictures never pass, or a head of the checkpoint's own, is so left as it is. Tied parameters
        come once.
        """
        if self._names is None:
            parameters = {name: p for name, p in self.module.named_parameters() if p.is_floating_point()}
            asked = {name: p.requires_grad for name, p in parameters.items()}
            for parameter in parameters.values():
                parameter.requires_grad_(True)
            try:
                with self.training(False), torch.enable_grad():
                    out = self.features(self.module, lesson.take(torch.tensor([0]))[0])
                    found = torch.autograd.grad(
                        out.float().square().sum(), list(parameters.values()), allow_unused=True
                    )
            finally:
                for name, parameter in parameters.items():
                    parameter.requires_grad_(asked[name])
            self._names = tuple(name for name, grad in zip(parameters, found, strict=True) if grad is not None)
        return self._names

    def state(self, names: tuple[str, ...]) -> dict[str, Tensor]:
        """Copies on the CPU of the parameters called so."""
        parameters = dict(self.module.named_parameters())
        return {name: parameters[name].detach().to("cpu", copy=True).contiguous() for name in names}

    def load(self, state: State) -> None:
        """Copy values into the parameters of these names; CheckpointError for one that is not there or does not fit."""
        parameters = dict(self.module.named_parameters())
        with torch.no_grad():
            for name, value in state.items():
                if name not in parameters or parameters[name].shape != value.shape:
                    found = list(parameters[name].shape) if name in parameters else "none of that name"
                    raise CheckpointError(
                        f"The tensor {name[:120]!r} {list(value.shape)} does not fit the model that is trained, which "
                        f"has {found}; start from weights of the same base."
                    )
                parameters[name].copy_(value)

    def loss(self, lesson: Lesson, places: Tensor, head: Head | None = None) -> Tensor:
        """Mean cross-entropy (a scalar) of the items at ``places`` under the lesson's head, or ``head``."""
        inputs, labels = lesson.take(places)
        logits = (head or lesson.head).logits(self.features(self.module, inputs))
        wide = logits if logits.dtype == torch.float64 else logits.float()
        return functional.cross_entropy(wide, labels.to(logits.device))

    @contextmanager
    def training(self, mode: bool) -> Iterator[None]:
        """The module in training mode, or not, and back afterwards.

        Layers with running statistics (batch norm) keep those of the base in either mode: models that are merged must
        share them.
        """
        before = {part: part.training for part in self.module.modules()}
        self.module.train(mode)
        for part in self.module.modules():
            if getattr(part, "running_mean", None) is not None:
                part.training = False
        try:
            yield
        finally:
            for part, was in before.items():
                part.training = was


def learner_of(model: Model) -> Learner:
    """A picture model as a learner, with a module of its own: ``model`` is not changed."""

    def features(module: nn.Module, inputs: Inputs) -> Tensor:
        pixels = model.pixels(_pictures(inputs))
        return model.through(module, pixels.to(next(module.parameters()).dtype))

    return Learner(copy.deepcopy(model.module), features)


def _pictures(inputs: Inputs) -> Tensor:
    if not isinstance(inputs, Tensor):
        raise TaskError("A picture model takes one tensor of pictures, not tensors by name.")
    return inputs


def _parts(inputs: Inputs) -> list[Tensor]:
    return [inputs] if isinstance(inputs, Tensor) else list(inputs.values())
