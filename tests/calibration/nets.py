"""Small models and the plain loops that statistics are compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 4


def jittered(module: nn.Module, seed: int = 0, scale: float = 0.3) -> nn.Module:
    """The module in float64 with every parameter random, so that each of them matters."""
    draw = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    return module


class Net(nn.Module):
    """Embedding, position, two layers on tokens (the first in place), norm, masked mean, head."""

    def __init__(self, width: int = 6, words: int = 11, length: int = 9) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width, padding_idx=0)
        self.places = nn.Embedding(length, width)
        self.first = nn.Linear(width, 8)
        self.second = nn.Linear(8, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.scale = nn.Parameter(torch.ones(width))
        self.head = nn.Linear(width, CLASSES)
        self.never = nn.Linear(3, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]).unsqueeze(0))
        x = x + self.second(self.first(x).relu_()) * self.scale
        x = self.norm(x) * mask.unsqueeze(-1)
        return self.head(x.sum(1) / mask.sum(1, keepdim=True))


def texts(count: int = 7, length: int = 9, seed: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Ids [N, T] (0 at padding), masks and labels."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 11, (count, length), generator=draw)
    lengths = torch.randint(1, length + 1, (count,), generator=draw)
    mask = (torch.arange(length) < lengths.unsqueeze(1)).double()
    ids = ids * mask.long()
    return ids, mask, torch.randint(0, CLASSES, (count,), generator=draw)


def score(logits: Tensor, labels: Tensor) -> Tensor:
    """log p(y|x) of each example, by cross entropy; tokens with -100 are left out of the mean."""
    if logits.ndim == 2:
        return -F.cross_entropy(logits, labels, reduction="none")
    losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=-100)
    return -losses.sum(1) / (labels != -100).sum(1)


def gradients(module: nn.Module, one: Callable[[int], Tensor], count: int) -> dict[str, Tensor]:
    """name -> gradients [N, *shape] of ``one(n)``, the log-likelihood of example n alone."""
    named = dict(module.requires_grad_(True).named_parameters())
    out: dict[str, list[Tensor]] = {name: [] for name in named}
    for n in range(count):
        found = torch.autograd.grad(one(n), list(named.values()), allow_unused=True)
        for name, gradient in zip(named, found, strict=True):
            out[name].append(torch.zeros_like(named[name]) if gradient is None else gradient)
    return {name: torch.stack(rows) for name, rows in out.items()}


def watched(module: nn.Module, layer: str, run: Callable[[], Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs of a layer, and gradients on its outputs, of every call while ``run()`` is differentiated."""
    ins: list[Tensor] = []
    outs: list[Tensor] = []

    def keep(_m: Any, args: tuple[Any, ...], y: Tensor) -> Tensor:
        ins.append(args[0].detach().clone())
        y = y.clone()
        y.retain_grad()
        outs.append(y)
        return y.clone()

    handle = module.get_submodule(layer).register_forward_hook(keep)
    run().sum().backward()
    handle.remove()
    module.zero_grad()
    return ins, [y.grad for y in outs]
