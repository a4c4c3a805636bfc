"""Measuring the model between rounds: accuracy and loss of each task on the same items every time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ...models import Model, Weights
from ...progress import Progress, Stop
from ...tasks import Head, accuracy
from ...training.ground import Ground


@dataclass(frozen=True)
class Seen:
    """Accuracy and mean cross-entropy by task, under each task's own head."""

    accuracy: dict[str, float]
    loss: dict[str, float]


class Watch:
    """The items of a split that are looked at, read once."""

    def __init__(self, ground: Ground, split: str, limit: int | None) -> None:
        self.ground, self.split = ground, split
        found = {name: ground.items(name, split, limit) for name in ground.names}
        self.images = {name: images for name, (images, _) in found.items()}
        self.labels = {name: labels for name, (_, labels) in found.items()}

    @property
    def items(self) -> dict[str, int]:
        return {name: len(labels) for name, labels in self.labels.items()}

    def measure(
        self, state: Mapping[str, Tensor] | None, heads: Mapping[str, Head] | None = None, *,
        tasks: tuple[str, ...] | None = None, progress: Progress | None = None, stop: Stop | None = None,
    ) -> Seen:  # fmt: skip
        """Of the base with ``state`` in the place of its tensors (None: the base itself)."""
        names, model = tasks or self.ground.names, self.ground.model
        weights = whole(model, state)
        features = model.encode_many([self.images[n] for n in names], progress=progress, stop=stop, weights=weights)
        shares, losses = {}, {}
        for name, found in zip(names, features, strict=True):
            logits = ((heads or {}).get(name) or self.ground.heads[name]).logits(found)
            shares[name] = accuracy(logits.argmax(-1), self.labels[name])
            losses[name] = float(F.cross_entropy(logits, self.labels[name]))
        return Seen(shares, losses)


def whole(model: Model, state: Mapping[str, Tensor] | None) -> Weights:
    """The model's own weights with those of ``state`` in their place, ready to run."""
    own = model.weights.tensors
    return Weights({**own, **{n: t.detach().to(own[n]) for n, t in (state or {}).items() if n in own}})
