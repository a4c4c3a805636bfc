"""A routed model: shared weights, one exclusive part and one head per task, and a router."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import RoutingError
from .gate import Gate, check_weights
from .parts import Exclusive, LowRank

if TYPE_CHECKING:
    from ..tasks import Head
    from .routers import Router


@dataclass(frozen=True, eq=False)
class RoutedModel:
    """θ*(x) = θ_s + Σ_t w_t(x)·v_t (Lu et al. 2024, equation 4), with nothing merged yet.

    names: tasks, in the order of every weight vector. shared: the shared model's tensors as stored. parts: task ->
    exclusive part. heads: task -> head (empty: the model has features only). router: what makes logits of the shared
    model's features; early_router: the same from the hidden states that enter its block ``early_layer``. gate: what
    makes weights of logits. config, preprocessor: what is needed to run the shared model. aliases: tied names ->
    stored names. settings: what it was built from and how, for a person and for its folder.
    """

    names: tuple[str, ...]
    shared: Mapping[str, Tensor]
    parts: Mapping[str, Exclusive]
    heads: Mapping[str, Head] = field(default_factory=dict)
    router: Router | None = None
    early_router: Router | None = None
    early_layer: int | None = None
    gate: Gate = field(default_factory=Gate)
    config: Mapping[str, Any] = field(default_factory=dict)
    preprocessor: Mapping[str, Any] | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) != len(self.names):
            raise RoutingError(f"A routed model needs tasks of different names, found {list(self.names)}.")
        if set(self.parts) != set(self.names):
            raise RoutingError(
                f"The exclusive parts are of {sorted(self.parts)}, the tasks are {sorted(self.names)}; "
                "build the routed model again."
            )
        for router in (self.router, self.early_router):
            if router is not None and tuple(router.names) != self.names:
                raise RoutingError(
                    f"The router knows the tasks {list(router.names)}, the model has {list(self.names)}; a router "
                    "must be trained again when tasks are added, removed or reordered."
                )

    def state(self, weights: Sequence[float] | Tensor) -> dict[str, Tensor]:
        """The ordinary checkpoint of fixed ``weights`` ``[T]``: fresh float32 tensors (others as they are).

        Linear in the weights. A running variance is kept from going below zero; tied names share one tensor.
        """
        row = check_weights(weights, len(self.names), allow_negative=True).flatten()
        out: dict[str, Tensor] = {}
        for name, tensor in self.shared.items():
            if name in self.aliases:
                continue
            if not tensor.is_floating_point():
                out[name] = tensor
                continue
            merged = tensor.to(torch.float32, copy=True)
            for weight, task in zip(row.tolist(), self.names, strict=True):
                part = self.parts[task].get(name)
                if part is None or weight == 0:
                    continue
                if isinstance(part, LowRank):
                    scaled = part.u.float() * (part.s.float() * weight)
                    merged.view(scaled.shape[0], -1).addmm_(scaled, part.v.float())
                else:
                    merged.add_(part.dense(), alpha=weight)
            out[name] = merged.clamp_(min=0) if name.endswith("running_var") else merged
        for name, target in self.aliases.items():
            out[name] = out[target]
        return out

    def to(self, device: torch.device | str) -> RoutedModel:
        """The same model with its tensors on a device; itself where they are there."""
        if all(tensor.device == torch.device(device) for tensor in self.shared.values()):
            return self
        shared = {name: tensor.to(device) for name, tensor in self.shared.items()}
        parts = {task: {n: p.to(device=device) for n, p in part.items()} for task, part in self.parts.items()}
        return replace(self, shared=shared, parts=parts)

    def at_rank(self, rank: int) -> RoutedModel:
        """The same model with at most ``rank`` directions a matrix, by reference; 0 is the shared model, with nothing
        of vectors either, so that it is the shared model exactly."""
        if rank < 0:
            raise RoutingError(f"The rank must be a whole number from 0, not {rank}.")
        parts: dict[str, Exclusive] = {}
        for task, part in self.parts.items():
            parts[task] = {n: p.cut(rank) if isinstance(p, LowRank) else p for n, p in part.items()} if rank else {}
        return replace(self, parts=parts)

    @property
    def rank(self) -> int:
        """The largest rank of its factors."""
        return max((p.rank for part in self.parts.values() for p in part.values() if isinstance(p, LowRank)), default=0)

    def bytes(self) -> dict[str, int]:
        """Bytes of tensors, as stored: ``shared``, ``exclusive`` (all tasks), ``router``, ``heads`` and ``total``.

        exclusive = b·Σ_t (Σ_matrices min(r·(m + n + 1), m·n) + Σ_vectors n), with b bytes a number.
        """
        parts = {
            "shared": sum(_size(t) for n, t in self.shared.items() if n not in self.aliases),
            "exclusive": sum(p.nbytes for part in self.parts.values() for p in part.values()),
            "router": sum(_size(t) for r in (self.router, self.early_router) if r for t in r.state().values()),
            "heads": sum(_size(h.weight) + (_size(h.bias) if h.bias is not None else 0) for h in self.heads.values()),
        }
        return {**parts, "total": sum(parts.values())}


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
