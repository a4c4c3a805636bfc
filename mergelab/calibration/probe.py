"""Finding out, with one example and then the same one twice, how a model uses its weights.

Which sites are called at all, and how often; where in an activation the examples lie (whatever doubles); whether a
site's output is what its weight makes of its input; which sites take the very same tensor.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .sites import CONV, EMBEDDING, NORM, Site, agrees, version


@dataclass
class Probe:
    """Notes of two passes: ``once`` with one example, then with that one twice. Activations are kept meanwhile."""

    once: bool = True
    no_grad: bool = False  # whether some site ran without gradients in the first pass
    _first: dict[Site, list[Tensor]] = field(default_factory=dict)
    _second: dict[Site, list[Tensor]] = field(default_factory=dict)
    _users: dict[tuple[int, int], list[Site]] = field(default_factory=dict)

    def note(self, site: Site, x: Tensor, y: Tensor) -> None:
        """One call."""
        kept = self._first if self.once else self._second
        kept.setdefault(site, []).append(x)
        if not self.once:
            return
        self.no_grad |= not torch.is_grad_enabled()
        self._users.setdefault((id(x), version(x)), []).append(site)
        if not agrees(site, x.detach(), y.detach()):
            site.wrong = "its output is not its weight times its input"

    def conclude(self, sites: list[Site]) -> None:
        """Write what was found into the sites."""
        for group, users in enumerate(self._users.values()):
            if len(users) > 1:
                for site in users:
                    site.group = group
        for site in sites:
            first, second = self._first.get(site, []), self._second.get(site, [])
            site.calls = len(first)
            found = {_place(site, x, twice) for x, twice in zip(first, second, strict=False)}
            if len(first) == len(second) and len(found) == 1:
                site.dim, site.folded = found.pop()
            else:
                site.dim = None
        self._first.clear()
        self._second.clear()


def _place(site: Site, x: Tensor, twice: Tensor) -> tuple[int | None, int]:
    """Along which dimension the examples lie, and how many rows each has there; (None, 1) if they are not apart."""
    inner = {CONV: x.ndim - 1, NORM: len(getattr(site.module, "normalized_shape", ())), EMBEDDING: 0}.get(site.kind, 1)
    for dim in range(x.ndim - inner):
        length = x.shape[dim]
        if length == 0 or twice.shape[dim] != 2 * length:
            continue
        halves = twice.movedim(dim, 0).split(length)
        if length > 1 and not all(_same(half, x.movedim(dim, 0)) for half in halves):
            return None, 1  # rows of different examples alternate
        return dim, length
    return None, 1


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(torch.allclose(a.double(), b.double(), rtol=1e-3, atol=1e-5, equal_nan=True))
