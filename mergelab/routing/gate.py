"""From a router's logits to the weights of the tasks' parts, and weights that come from elsewhere."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .routers import RouterError


@dataclass(frozen=True)
class Gate:
    """``softmax(logits / temperature)``, the paper's weights, with options that it does not have.

    ``top_k`` keeps the k likeliest tasks and shares their weights out to sum 1 (logits that tie with the k-th one are
    kept as well, so the order of the tasks does not matter). ``threshold``: where no task reaches this probability,
    before ``top_k``, all weights are 0: the shared model answers alone.
    """

    temperature: float = 1.0
    top_k: int | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        t, k, least = self.temperature, self.top_k, self.threshold
        if not _real(t) or not t > 0:
            raise RouterError(f"The gate's temperature must be a number above 0, not {t!r}.")
        if k is not None and (not isinstance(k, int) or isinstance(k, bool) or k < 1):
            raise RouterError(f"The gate's top_k must be a whole number of at least 1, or none, not {k!r}.")
        if least is not None and (not _real(least) or not 0 <= least <= 1):
            raise RouterError(f"The gate's threshold must be a probability from 0 to 1, or none, not {least!r}.")

    def weights(self, logits: Tensor) -> Tensor:
        """Float32 ``[N, T]`` from logits ``[N, T]``: rows that sum to 1, or of zeros alone under the threshold."""
        if logits.ndim != 2 or logits.shape[1] == 0:
            raise RouterError(f"A gate takes logits of shape [inputs, tasks], not {tuple(logits.shape)}.")
        _finite(logits, "logits")
        z = logits.detach().double()
        z = (z - z.max(dim=1, keepdim=True).values) / self.temperature
        full = z.softmax(dim=1)
        weights = full
        if self.top_k is not None and self.top_k < z.shape[1]:
            least = logits.topk(self.top_k, dim=1).values[:, -1:]
            weights = z.masked_fill(logits < least, -math.inf).softmax(dim=1)
        if self.threshold is not None:
            # Rounding must not send a certain row (or T equal ones at threshold 1/T) to the shared model.
            unsure = full.max(dim=1, keepdim=True).values < self.threshold - 1e-9
            weights = weights.masked_fill(unsure, 0.0)
        return weights.float()

    def to_dict(self) -> dict[str, float | int | None]:
        return {"temperature": self.temperature, "top_k": self.top_k, "threshold": self.threshold}


def check_weights(
    weights: Tensor | Sequence[float] | Sequence[Sequence[float]],
    tasks: int,
    *,
    allow_negative: bool = False,
    must_sum: bool = False,
) -> Tensor:
    """``weights`` as a finite float32 tensor ``[tasks]`` or ``[N, tasks]``, whichever was given.

    ``must_sum``: every row sums to 1 (within 1e-4) or is zero throughout, which stands for the shared model alone.
    Raises :class:`RouterError` that names the first row in the wrong.
    """
    plain = _table(weights)
    if plain.ndim not in (1, 2) or plain.shape[-1] != tasks:
        raise RouterError(f"Weights must be {tasks} numbers, one a task, or a row of them for every input; "
                          f"these have the shape {list(plain.shape)}.")  # fmt: skip
    _finite(plain, "weights")
    rows = plain.reshape(-1, tasks)
    if not allow_negative and bool((rows < 0).any()):
        row, task = (rows < 0).nonzero()[0].tolist()
        raise RouterError(f"The weights of {_row(plain, row)} have {float(rows[row, task]):g} at task {task + 1}. "
                          "Weights must not be negative: use 0 to leave a task out.")  # fmt: skip
    if must_sum:
        off = ((rows.double().sum(dim=1) - 1).abs() > 1e-4) & (rows != 0).any(dim=1)
        if bool(off.any()):
            row = int(off.nonzero()[0])
            raise RouterError(f"The weights of {_row(plain, row)} sum to {float(rows[row].sum()):g}, not to 1. "
                              "Divide them by their sum (normalise).")  # fmt: skip
    return plain


def one_hot(index: Tensor | Sequence[int] | int, tasks: int) -> Tensor:
    """Float32 ``[N, tasks]`` with weight 1 at each ``index`` (counted from 0): one expert alone for every input."""
    places = torch.atleast_1d(torch.as_tensor(index))
    if places.numel() == 0:
        return torch.zeros(0, tasks)
    if places.ndim != 1 or places.is_floating_point() or places.is_complex() or places.dtype == torch.bool:
        raise RouterError("Tasks are chosen by whole numbers, one for every input.")
    bad = (places < 0) | (places >= tasks)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise RouterError(f"Row {row} asks for task {int(places[row])}, but the tasks are 0 to {tasks - 1}.")
    return torch.nn.functional.one_hot(places.long(), tasks).float()


def uniform(rows: int, tasks: int) -> Tensor:
    """Float32 ``[rows, tasks]``, every task with weight 1/tasks."""
    return torch.full((rows, tasks), 1 / tasks)


def fixed(
    weights: Tensor | Sequence[float], rows: int, *, allow_negative: bool = False, must_sum: bool = False
) -> Tensor:
    """The same ``weights`` ``[T]`` for every input, ``[rows, T]``, checked as :func:`check_weights` does."""
    plain = _table(weights)
    if plain.ndim != 1:
        raise RouterError("Fixed weights are one number a task, not a row for every input.")
    return check_weights(plain, len(plain), allow_negative=allow_negative, must_sum=must_sum).repeat(rows, 1)


def normalise(weights: Tensor | Sequence[float] | Sequence[Sequence[float]]) -> Tensor:
    """Weights (``[T]`` or ``[N, T]``, none negative) divided by their sum, row by row; zeros throughout stay zeros."""
    plain = _table(weights)
    plain = check_weights(plain, plain.shape[-1] if plain.ndim else 0).double()
    total = plain.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, plain / total.clamp(min=1e-300), 0.0).float()


def entropy(weights: Tensor) -> Tensor:
    """-Σ w ln w of every row, float32 ``[N]``, in nats: 0 for one task alone (and for zeros), ln T for all alike."""
    plain = check_weights(weights, weights.shape[-1]).double()
    return torch.special.entr(plain).sum(dim=-1).float()


def _table(weights: object) -> Tensor:
    try:
        return torch.as_tensor(weights, dtype=torch.float32).detach()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise RouterError(f"The weights are no table of numbers, one a task: {error}.") from error


def _finite(rows: Tensor, what: str) -> None:
    if not bool(torch.isfinite(rows).all()):
        row = int((~torch.isfinite(rows.reshape(-1, rows.shape[-1]))).any(dim=1).nonzero()[0])
        raise RouterError(
            f"The {what} of {_row(rows, row)} are not finite. Look for NaN in the features or the router."
        )


def _row(rows: Tensor, row: int) -> str:
    return f"row {row}" if rows.ndim == 2 else "all inputs"


def _real(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
