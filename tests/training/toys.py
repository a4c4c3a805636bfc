"""Small things to train: a curved regression-like classifier in float64 or float32, tasks that differ."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mergelab.tasks import Head
from mergelab.training.learner import Learner, Lesson

WIDTH, CLASSES = 5, 3


def learner(dtype: torch.dtype = torch.float64, dropout: float = 0.0, seed: int = 0) -> Learner:
    """A two-layer tower with a bias that nothing reads."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, WIDTH)).to(dtype)
    module.register_parameter("unread", nn.Parameter(torch.ones(2, dtype=dtype)))
    return Learner(module, lambda part, inputs: part(inputs))


def lessons(counts: tuple[int, ...] = (12, 12, 12), dtype: torch.dtype = torch.float64) -> list[Lesson]:
    out = []
    for i, count in enumerate(counts):
        random = torch.Generator().manual_seed(100 + i)
        inputs = torch.randn(count, 4, generator=random, dtype=dtype)
        labels = torch.randint(0, CLASSES, (count,), generator=random)
        head = Head(torch.randn(CLASSES, WIDTH, generator=random, dtype=dtype))
        out.append(Lesson(f"t{i}", inputs, labels, head))
    return out


def gradient(made: Learner, lesson: Lesson, at: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradient of a lesson's mean loss over all its items, by autograd on a functional call."""
    names = list(at)
    values = [at[name].clone().requires_grad_(True) for name in names]
    features = torch.func.functional_call(made.module, dict(zip(names, values, strict=True)), (lesson.inputs,))
    scores = features @ lesson.head.weight.T
    loss = torch.nn.functional.cross_entropy(scores, lesson.labels)
    return dict(zip(names, torch.autograd.grad(loss, values), strict=True))
