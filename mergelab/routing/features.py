"""Features of inputs, from a model's hidden states, and how they are made ready to train a router."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from .routers import RouterError, RouterSettings, check_features

#: Counts whose largest is more than this times the smallest are called imbalanced.
IMBALANCE = 1.5


def masked_mean(hidden: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of the tokens that are there, float32 ``[N, d]``: ``hidden`` ``[N, L, d]``, ``mask`` ``[N, L]`` of 0 and 1.

    Equal to the plain mean of each sequence without its padding, whatever stands in the padding, so an input's features
    do not depend on what else is in its batch. Raises :class:`RouterError` for a sequence that is all padding.
    """
    kept = _kept(hidden, mask)
    total = hidden.float().masked_fill(~kept.unsqueeze(-1), 0.0).sum(dim=1)
    return total / kept.sum(dim=1, keepdim=True)


def last_token(hidden: Tensor, mask: Tensor | None = None) -> Tensor:
    """The state of each sequence's last token, float32 ``[N, d]``; the padding may be on either side.

    For decoders, whose last token alone has seen the whole input. Arguments and errors as for :func:`masked_mean`.
    """
    kept = _kept(hidden, mask)
    last = kept.shape[1] - 1 - kept.flip(1).int().argmax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last].float()


def _kept(hidden: Tensor, mask: Tensor | None) -> Tensor:
    if hidden.ndim != 3 or hidden.shape[1] == 0:
        raise RouterError(f"Hidden states must have the shape [inputs, tokens, width], not {tuple(hidden.shape)}.")
    if mask is None:
        return torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
    if mask.shape != hidden.shape[:2]:
        raise RouterError(f"The mask must have the shape {tuple(hidden.shape[:2])}, not {tuple(mask.shape)}.")
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise RouterError("The mask may hold 1 (a token) and 0 (padding) only.")
    kept = mask.to(device=hidden.device, dtype=torch.bool)
    empty = ~kept.any(dim=1)
    if bool(empty.any()):
        raise RouterError(f"Input {int(empty.nonzero()[0])} is all padding: it has no token to take features from.")
    return kept


@dataclass(frozen=True, eq=False)
class Data:
    """A router's training data: balanced, standardised, its peculiarities noted in ``warnings``."""

    names: tuple[str, ...]
    x: Tensor = field(repr=False)  # [M, d] float32, standardised
    labels: Tensor = field(repr=False)  # [M] int64, the place of the task in names
    held_x: Tensor = field(repr=False)  # [V, d] validation, standardised alike; V may be 0
    held_labels: Tensor = field(repr=False)  # [V]
    mean: Tensor = field(repr=False)  # [d]
    scale: Tensor = field(repr=False)  # [d]
    class_weights: Tensor | None  # [T] for the loss, where the counts are imbalanced
    given: tuple[int, ...]  # examples that were there of each task
    warnings: tuple[str, ...]

    @property
    def width(self) -> int:
        return int(self.x.shape[1])

    def counts(self) -> dict[str, object]:
        """How many examples each task gave ("given"), how many were used ("counts") and held out ("held_out")."""
        tasks = len(self.names)
        used, held = (torch.bincount(labels, minlength=tasks).tolist() for labels in (self.labels, self.held_labels))
        found = {"given": self.given, "counts": used, "held_out": held}
        return {key: dict(zip(self.names, (int(n) for n in values), strict=True)) for key, values in found.items()}


def prepare(features: Mapping[str, Tensor], validation: Mapping[str, Tensor], settings: RouterSettings) -> Data:
    """Check, cap, balance and standardise. Which examples of a task are drawn depends on its name, not on its place."""
    names = tuple(features)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise RouterError("A router needs the features of at least one task, each under its name.")
    for name in validation:
        if name not in features:
            raise RouterError(f"There is validation data of {name!r}, which is no task of the router.")
    width = next(iter(features.values())).shape[-1] if features[names[0]].ndim else 0
    given = {name: _of_task(features[name], width, f"{name!r} (router training)", names[0]) for name in names}
    held = {n: _of_task(t, width, f"{n!r} (validation)", names[0], True) for n, t in validation.items()}
    for name, rows in given.items():
        if len(rows) == 0 or width == 0:
            raise RouterError(f"The router has no example of the task {name!r} to learn from. Give some, or drop it.")
    counts = [len(given[name]) for name in names]
    caps = [n if settings.per_task is None else min(n, settings.per_task) for n in counts]
    if settings.balanced:
        caps = [min(caps)] * len(caps)
    warnings, uneven = _imbalance(names, counts, caps, settings)
    drawn = [_draw(given[name], cap, settings.seed, name) for name, cap in zip(names, caps, strict=True)]
    x, labels = torch.cat(drawn), torch.repeat_interleave(torch.arange(len(names)), torch.tensor(caps))
    held_rows = [held.get(name, x[:0]) for name in names]
    held_x = torch.cat(held_rows)
    held_labels = torch.repeat_interleave(torch.arange(len(names)), torch.tensor([len(rows) for rows in held_rows]))
    warnings += _doubles(x, labels, held_x)
    if len(held_x) > 0 and min(map(len, held_rows)) == 0:
        missing = ", ".join(name for name, rows in zip(names, held_rows, strict=True) if len(rows) == 0)
        warnings.append(f"No validation data of {missing}: the score that chooses the epoch does not see it.")
    mean, scale, constant = _standard(x, settings.standardise)
    if constant == width:
        warnings.append("All features are the same for every example: the router cannot tell the tasks apart.")
    elif constant:
        ignored = " and are ignored" if settings.standardise else ""
        warnings.append(f"{constant} of {width} features never vary in the router's training data{ignored}.")
    weights = len(x) / (len(names) * torch.tensor(caps, dtype=torch.float32)) if uneven else None
    given_counts = tuple(counts)
    standard = ((x - mean) * scale, labels, (held_x - mean) * scale, held_labels)
    return Data(names, *standard, mean, scale, weights, given_counts, tuple(warnings))


def scores(score: Callable[[Tensor], Tensor], data: Data) -> dict[str, object]:
    """What a router makes of the validation data: :func:`loss_and_accuracy` and the confusion matrix, as plain data.

    ``confusion[t][p]`` counts the examples of task t whose largest logit is task p's. Empty without validation data.
    """
    if len(data.held_x) == 0:
        return {}
    logits, tasks = score(data.held_x), len(data.names)
    loss, accuracy = loss_and_accuracy(logits, data.held_labels, tasks)
    pairs = data.held_labels * tasks + logits.argmax(dim=1)
    confusion = torch.bincount(pairs, minlength=tasks * tasks).reshape(tasks, tasks).tolist()
    return {"validation": {"loss": loss, "accuracy": accuracy, "confusion": confusion}}


def loss_and_accuracy(logits: Tensor, labels: Tensor, tasks: int) -> tuple[float, float]:
    """Cross-entropy (nats) and accuracy, each the mean over the tasks present of the mean over a task's examples."""
    counts = torch.bincount(labels, minlength=tasks).double()
    share = (1 / counts)[labels] / (counts > 0).sum()
    losses = functional.cross_entropy(logits.double(), labels, reduction="none")
    right = (logits.argmax(dim=1) == labels).double()
    return float((losses * share).sum()), float((right * share).sum())


def _of_task(rows: Tensor, width: int, where: str, first: str, empty: bool = False) -> Tensor:
    if isinstance(rows, Tensor) and rows.ndim == 2 and rows.shape[1] != width and not (empty and len(rows) == 0):
        raise RouterError(
            f"The features of {where} have width {rows.shape[1]}, but those of {first!r} have {width}. "
            "Take all of them from the same shared model."
        )
    if isinstance(rows, Tensor) and rows.ndim == 2 and len(rows) == 0:
        return torch.empty(0, width)
    return check_features(rows, width, f"The router's data of {where}")


def _imbalance(
    names: tuple[str, ...], counts: list[int], caps: list[int], settings: RouterSettings
) -> tuple[list[str], bool]:
    """The warning, if one is due, and whether the counts in use are imbalanced."""
    low, high = min(counts), max(counts)
    if high <= IMBALANCE * low:
        return [], False
    most, least = names[counts.index(high)], names[counts.index(low)]
    spread = f"Imbalanced router data: {high} examples of {most}, {low} of {least}."
    if settings.balanced:
        return ([f"{spread} {caps[0]} were used of every task."], False) if caps[0] == low else ([], False)
    uneven = max(caps) > IMBALANCE * min(caps)
    return ([f"{spread} Every task was given the same weight."], True) if uneven else ([], False)


def _draw(rows: Tensor, count: int, seed: int, name: str) -> Tensor:
    """``count`` of ``rows`` without repeats, in their order."""
    if count == len(rows):
        return rows
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return rows[torch.randperm(len(rows), generator=generator)[:count].sort().values]


def _standard(x: Tensor, wanted: bool) -> tuple[Tensor, Tensor, int]:
    """Mean, 1 / deviation (0 for a feature that never varies), and how many never vary; 0 and 1 if not ``wanted``."""
    exact = x.double()
    mean, deviation = exact.mean(dim=0), exact.std(dim=0, correction=0)
    constant = deviation <= 1e-6 * mean.abs().clamp(min=1e-30)  # float32 noise around a constant is no signal
    if not wanted:
        return torch.zeros(x.shape[1]), torch.ones(x.shape[1]), int(constant.sum())
    scale = torch.where(constant, 0.0, 1 / deviation.clamp(min=1e-30))
    return mean.float(), scale.float(), int(constant.sum())


def _doubles(x: Tensor, labels: Tensor, held: Tensor) -> list[str]:
    """Warnings about equal features under two tasks, and in both training and validation data."""
    seen: dict[bytes, int] = {}
    crossed = sum(seen.setdefault(row.tobytes(), t) != t for row, t in zip(x.numpy(), labels.tolist(), strict=True))
    shared = sum(row.tobytes() in seen for row in held.numpy())
    found = []
    if crossed:
        found.append(f"{crossed} examples also appear under another task: no router can tell them apart.")
    if shared:
        found.append(f"{shared} of {len(held)} validation examples are also training examples: the score is too good.")
    return found
