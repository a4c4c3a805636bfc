"""Inner products of whole models, a few entries at a time, so that models never lie in memory because of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from ..errors import CheckpointError

#: A model: name -> tensor. It may read its tensors only when asked for them.
State: TypeAlias = Mapping[str, Tensor]
#: Models with the names that they have in an error.
Named: TypeAlias = Sequence[tuple[str, State]]

#: Entries of all models together that are held at once, in float64: 4 MiB.
_TOGETHER = 1 << 19


def gram(models: Named, mix: Tensor | None = None) -> Tensor:
    """⟨v_a, v_b⟩ of v_a = Σ_i mix[a, i] θ_i over all floating-point entries: [A, A], float64, on the CPU.

    Args:
        models: names and θ_i, with the same tensor names and shapes.
        mix: [A, number of models], float64; None for the models themselves. Differences belong in here: those of
            large and close models are then taken entry by entry, before anything is squared.

    Raises:
        CheckpointError: a tensor is missing, left over, of another shape or not finite; names it and the model.
    """
    size = len(models) if mix is None else len(mix)
    total = torch.zeros(size, size, dtype=torch.float64)
    for rows in _chunks(models):
        vectors = rows if mix is None else mix.to(rows) @ rows
        total += (vectors @ vectors.T).cpu()
    return total


def length(models: Named, weights: Sequence[float]) -> float:
    """‖Σ_i weights[i] θ_i‖ over all floating-point entries."""
    return float(gram(models, torch.tensor([weights], dtype=torch.float64)).sqrt())


def mixed(states: Sequence[State], weights: Sequence[float]) -> dict[str, Tensor]:
    """Σ_i weights[i] θ_i, tensor by tensor in float64, in the first model's dtypes; its other tensors are copied.

    The weights should add up to 1, so that what the models share stays. Running statistics of normalisation layers are
    mixed like weights; re-estimate them where that matters.
    """
    out = {}
    for name, origin in states[0].items():
        if not origin.is_floating_point():
            out[name] = origin.clone()
            continue
        total = origin.to(torch.float64) * weights[0]
        for state, weight in zip(states[1:], weights[1:], strict=True):
            if weight:
                total.add_(state[name].to(origin.device, torch.float64), alpha=weight)
        out[name] = total.to(origin.dtype)
    return out


def check_fitting(models: Named) -> None:
    """CheckpointError where the models' tensors do not have the same names and shapes."""
    for name in _shared_names(models):
        _of_all(models, name)


def _chunks(models: Named) -> Iterator[Tensor]:
    """float64 [models, some entries] of every floating-point tensor in turn, on the first model's device."""
    width = max(1, _TOGETHER // len(models))
    for name in _shared_names(models):
        parts = [tensor.reshape(-1) for tensor in _of_all(models, name)]
        for at in range(0, parts[0].numel() if parts else 0, width):
            rows = torch.stack([part[at : at + width].to(parts[0].device, torch.float64) for part in parts])
            if not bool(rows.isfinite().all()):
                guilty = [title for (title, _), row in zip(models, rows, strict=True) if not bool(row.isfinite().all())]
                raise CheckpointError(
                    f"The tensor {name!r} holds NaN or infinity in {', '.join(guilty)}, so it has no place beside the "
                    "others. Use another checkpoint."
                )
            yield rows


def _shared_names(models: Named) -> list[str]:
    """Names of all tensors; CheckpointError where a model has others."""
    (title, first), *others = models
    for other, state in others:
        missing, extra = [n for n in first if n not in state], [n for n in state if n not in first]
        if missing or extra:
            what = f"has no tensor {missing[0]!r}" if missing else f"has a tensor {extra[0]!r}"
            like = f"as {title} has" if missing else f"that {title} has not"
            raise CheckpointError(
                f"{other} {what} {like}, so the two cannot be compared. Choose models of one architecture."
            )
    return list(first)


def _of_all(models: Named, name: str) -> list[Tensor]:
    """One tensor of every model, none where it is not floating-point; CheckpointError where shapes differ."""
    (title, first), *others = models
    origin = first[name]
    if not origin.is_floating_point():
        return []
    out = [origin]
    for other, state in others:
        tensor = state[name]
        if tensor.shape != origin.shape or not tensor.is_floating_point():
            raise CheckpointError(
                f"{other}: tensor {name!r} is {tensor.dtype} {list(tensor.shape)}, {title} has {origin.dtype} "
                f"{list(origin.shape)}. Choose models of one architecture."
            )
        out.append(tensor)
    return out
