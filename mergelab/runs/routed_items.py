"""Test pictures of several tasks in one batch, and how answers to them are read under a head policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import RoutingError, suggest
from ..progress import Progress, Stop
from ..tasks import Head, Suite, subset_indices

#: Whose head reads an input. ``oracle`` is told the task; the others are not.
HEADS = ("oracle", "router_argmax", "max_logit")


@dataclass(frozen=True, eq=False)
class Items:
    """Pictures with their task and label, mixed. ``images``: one uint8 ``[H, W, 3]`` each (sizes may differ)."""

    images: tuple[Tensor, ...]
    labels: Tensor  # [N] int64
    owner: Tensor  # [N] int64, the task's place among the routed model's names
    places: Tensor  # [N] int64, in the task's test split

    def __len__(self) -> int:
        return len(self.images)

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """(places in this set, pictures [n, H, W, 3]) of each size of picture; one pair where all are alike."""
        by_size: dict[tuple[int, ...], list[int]] = {}
        for place, image in enumerate(self.images):
            by_size.setdefault(tuple(image.shape), []).append(place)
        return [(torch.tensor(mine), torch.stack([self.images[i] for i in mine])) for mine in by_size.values()]


def gather(suite: Suite, names: Sequence[str], per_task: int, *, seed: int = 0, mixed: bool = True) -> Items:
    """``per_task`` test pictures of each task, those of an evaluation on as many; ``mixed`` by ``seed``."""
    images: list[Tensor] = []
    labels, owner, places = [], [], []
    for number, name in enumerate(names):
        task = suite[name]
        pictures, truth = task.split("test")
        chosen = subset_indices(task, "test", per_task) if per_task < len(truth) else torch.arange(len(truth))
        images += list(pictures[chosen])
        labels.append(truth[chosen])
        places.append(chosen)
        owner.append(torch.full((len(chosen),), number))
    order = list(range(len(images)))
    if mixed:
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
    return Items(
        tuple(images[i] for i in order), torch.cat(labels)[order], torch.cat(owner)[order], torch.cat(places)[order]
    )


def mixed_batch(suite: Suite, names: Sequence[str], count: int, seed: int) -> Items:
    """``count`` test pictures drawn over all tasks in turn, in random order."""
    rng = torch.Generator().manual_seed(seed)
    owner = torch.arange(count) % len(names)
    owner = owner[torch.randperm(count, generator=rng)]
    images, labels, places = [], [], []
    for number in owner.tolist():
        pictures, truth = suite[names[number]].split("test")
        place = int(torch.randint(len(truth), (1,), generator=rng))
        images.append(pictures[place])
        labels.append(int(truth[place]))
        places.append(place)
    return Items(tuple(images), torch.tensor(labels), owner, torch.tensor(places))


def run(
    runner: Any,
    items: Items,
    weights: Tensor | None,
    mode: str,
    *,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> tuple[Tensor, Tensor, list[str]]:
    """Features ``[N, width]``, weights ``[N, T]`` that were used, and the modes that ran (one a size of picture)."""
    features, used = torch.empty(0), torch.empty(0)
    modes: list[str] = []
    for mine, images in items.batches():
        given = weights if weights is None or weights.ndim == 1 else weights[mine]
        ran = runner.run(images, given, mode, progress=progress, stop=stop)
        if not modes:
            features = torch.empty(len(items), ran.features.shape[1])
            used = torch.empty(len(items), ran.weights.shape[1])
        features[mine], used[mine] = ran.features.float().cpu(), ran.weights.float().cpu()
        modes.append(str(ran.mode))
    return features, used, modes


@dataclass(frozen=True, eq=False)
class Read:
    """``head`` [N]: whose head read each input; ``label`` [N]: its class there; ``scores``: logits of every head."""

    head: Tensor
    label: Tensor
    scores: tuple[Tensor, ...]

    def right(self, items: Items) -> Tensor:
        """[N] whether the class is right; another task's class never is."""
        return (self.head == items.owner) & (self.label == items.labels)


def read(
    features: Tensor, heads: Mapping[str, Head], names: Sequence[str], policy: str, *,
    weights: Tensor | None = None, owner: Tensor | None = None,
) -> Read:  # fmt: skip
    """Classes of ``features`` ``[N, width]`` under a head policy.

    oracle: ``owner`` ``[N]`` says the task. router_argmax: the task with the largest of ``weights`` ``[N, T]``.
    max_logit: the head with the largest logit of all.
    """
    if policy not in HEADS:
        raise RoutingError(f"There is no head policy {policy!r}.{suggest(policy, HEADS)}")
    missing = [name for name in names if name not in heads]
    if missing:
        raise RoutingError(f"The task {missing[0]!r} has no head, so nothing can be read under it.")
    scores = tuple(heads[name].logits(features) for name in names)
    if policy == "max_logit":
        chosen = torch.stack([s.max(-1).values for s in scores], -1).argmax(-1)
    elif policy == "oracle":
        if owner is None:
            raise RoutingError("The oracle head must be told the task of every input.")
        chosen = owner
    else:
        assert weights is not None, "the router's choice needs its weights"
        chosen = weights.argmax(-1)
    best = torch.stack([s.argmax(-1) for s in scores], -1)
    return Read(chosen, best.gather(-1, chosen[:, None])[:, 0], scores)
