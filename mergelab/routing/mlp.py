"""The router of Twin-Merging: a small network on the shared model's features (Lu et al. 2024, section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..progress import Progress, Stop, report
from .features import Data, loss_and_accuracy
from .routers import Fitted, RouterError, RouterSettings, check_shapes

#: The two hidden blocks: place of the linear layer and of its batch norm, counted as in a ``torch.nn.Sequential`` of
#: Linear, BatchNorm1d, LeakyReLU, Dropout, Linear, BatchNorm1d, LeakyReLU, Dropout, Linear.
_BLOCKS, _LAST = (("0", "1"), ("4", "5")), "8"


class MlpRouter(Fitted):
    """Linear(d, h), batch norm, leaky ReLU, dropout; the same from h to h; Linear(h, T). h = 2d as a rule.

    ``tensors`` are named as in the state dict of that ``torch.nn.Sequential``. Batch norm uses its running statistics
    and dropout is off, so a row's logits do not depend on its batch.
    """

    kind = "mlp"

    def score(self, x: Tensor) -> Tensor:
        return forward(self.tensors, x)

    @classmethod
    def check(cls, tensors: Mapping[str, Tensor], tasks: int, width: int) -> None:
        first = tensors.get("0.weight")
        hidden = first.shape[0] if first is not None and first.ndim == 2 and first.shape[0] else 1
        check_shapes(tensors, _shapes(width, hidden, tasks))
        for _, norm in _BLOCKS:
            if bool((tensors[f"{norm}.running_var"] < 0).any()):
                raise RouterError(f"The router's tensor '{norm}.running_var' is negative somewhere. Train it again.")


def forward(tensors: Mapping[str, Tensor], x: Tensor, drop: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Logits ``[N, T]``. With ``drop`` (the dropout) it trains: batch statistics, and the running ones move by 0.1."""
    for linear, norm in _BLOCKS:
        x = functional.linear(x, tensors[f"{linear}.weight"], tensors[f"{linear}.bias"])
        running = tensors[f"{norm}.running_mean"], tensors[f"{norm}.running_var"]
        affine = tensors[f"{norm}.weight"], tensors[f"{norm}.bias"]
        x = functional.batch_norm(x, *running, *affine, training=drop is not None, momentum=0.1, eps=1e-5)
        x = functional.leaky_relu(x, 0.01)
        x = x if drop is None else drop(x)
    return functional.linear(x, tensors[f"{_LAST}.weight"], tensors[f"{_LAST}.bias"])


def fit_mlp(
    data: Data, settings: RouterSettings, progress: Progress | None, stop: Stop | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Cross-entropy on the task with AdamW (no decay, rate falling to 0 on a line, gradients clipped to norm 1).

    The epoch with the best validation accuracy is kept, of equals the one with the lower loss; both are means over
    tasks. Starts, order and dropout come from one generator, so neither global random state nor threads matter.
    """
    if len(data.x) < 2:
        raise RouterError("An mlp router needs two examples at least (batch norm). Give more, or use kind centroid.")
    generator = torch.Generator().manual_seed(settings.seed)
    tensors = _start(data.width, settings.hidden or 2 * data.width, len(data.names), generator)
    learnt = [tensor.requires_grad_() for name, tensor in tensors.items() if "running" not in name]
    optimiser = torch.optim.AdamW(learnt, lr=settings.rate, weight_decay=0.0)
    sizes = [len(rows) for rows in _batches(len(data.x), settings.batch, torch.Generator())]
    total, step = settings.epochs * len(sizes), 0
    curves: dict[str, list[float]] = {"loss": [], "validation_loss": [], "validation_accuracy": []}
    best, best_epoch, kept = (-1.0, -math.inf), 0, tensors
    for epoch in range(1, settings.epochs + 1):
        running = 0.0
        for rows in _batches(len(data.x), settings.batch, generator):
            if stop is not None:
                stop.check()
            for group in optimiser.param_groups:
                group["lr"] = settings.rate * (1 - step / total)
            with torch.enable_grad():
                logits = forward(tensors, data.x[rows], lambda x: _drop(x, settings.dropout, generator))
                loss = functional.cross_entropy(logits, data.labels[rows], weight=data.class_weights)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learnt, 1.0)
            optimiser.step()
            step += 1
            running += loss.item() * len(rows)
            report(progress, step, total, f"router: epoch {epoch} of {settings.epochs}")
        curves["loss"].append(running / len(data.x))
        if not math.isfinite(running):
            raise RouterError(f"Training the router diverged (loss {running}). Lower the rate {settings.rate:g}.")
        if len(data.held_x) == 0:
            best_epoch = epoch
            continue
        with torch.no_grad():
            lost, right = loss_and_accuracy(forward(tensors, data.held_x), data.held_labels, len(data.names))
        curves["validation_loss"].append(lost)
        curves["validation_accuracy"].append(right)
        if (right, -lost) > best:
            best, best_epoch, kept = (right, -lost), epoch, {name: t.detach().clone() for name, t in tensors.items()}
        elif settings.patience is not None and epoch - best_epoch >= settings.patience:
            break
    warnings = [] if len(data.held_x) else ["No validation data: the last epoch was kept, and no score is known."]
    notes = {"curves": curves, "epoch": best_epoch, "warnings": warnings}
    return {name: tensor.detach() for name, tensor in kept.items()}, notes


def _shapes(width: int, hidden: int, tasks: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for (linear, norm), inner in zip(_BLOCKS, (width, hidden), strict=True):
        shapes |= {f"{linear}.weight": (hidden, inner), f"{linear}.bias": (hidden,)}
        shapes |= {f"{norm}.{part}": (hidden,) for part in ("weight", "bias", "running_mean", "running_var")}
    return shapes | {f"{_LAST}.weight": (tasks, hidden), f"{_LAST}.bias": (tasks,)}


def _start(width: int, hidden: int, tasks: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Linear layers uniform within 1/√(inputs), as torch starts them; batch norm as the identity."""
    tensors: dict[str, Tensor] = {}
    inputs = {"0": width, "4": hidden, _LAST: hidden}
    for name, shape in _shapes(width, hidden, tasks).items():
        place, part = name.split(".")
        if place in inputs:
            tensors[name] = (2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(inputs[place])
        else:
            tensors[name] = torch.ones(shape) if part in ("weight", "running_var") else torch.zeros(shape)
    return tensors


def _batches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Row numbers in random order; a last batch of one row joins the batch before it (batch norm needs two)."""
    order = torch.randperm(count, generator=generator)
    starts = list(range(0, count, size))
    if len(starts) > 1 and count - starts[-1] == 1:
        starts.pop()
    for start, end in zip(starts, [*starts[1:], count], strict=True):
        yield order[start:end]


def _drop(x: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    return x if rate == 0 else x * (torch.rand(x.shape, generator=generator) >= rate) / (1 - rate)
