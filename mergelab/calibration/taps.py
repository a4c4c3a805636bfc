"""What is added up at each site while batches pass."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import StatisticsError
from .sites import EMBEDDING, MAPS, NORM, Site
from .sums import Outer, add_squares, sum_of


@dataclass(eq=False)
class Factors:
    """A, the mean input and G of one weight, as sums over rows."""

    inputs: Outer | None = None
    mean: Tensor | None = None
    outputs: Outer | None = None
    rows: int = 0
    reached: bool = False

    @property
    def sums(self) -> list[Tensor]:
        return [t for t in (self.mean, *(o.sum for o in (self.inputs, self.outputs) if o is not None)) if t is not None]


@dataclass(eq=False)
class Fisher:
    """Sums over examples of one tensor's squared gradients, and of their outer products."""

    shape: tuple[int, ...]
    diagonal: Tensor | None = None
    full: Tensor | None = None
    reached: bool = False

    def add(self, gradients: Tensor, part: slice | None = None) -> None:
        """Add the gradients [N, ...] of N examples (of the rows ``part`` of the tensor)."""
        self.reached = True
        flat = gradients.reshape(len(gradients), -1)
        if self.diagonal is not None:
            place = self.diagonal if part is None else self.diagonal[part]
            place.view(-1).add_(flat.square().sum(0))
        if self.full is not None:
            self.full.addmm_(flat.T, flat)


@dataclass(eq=False)
class Tap:
    """What one site adds to. ``weight`` and ``bias`` are None where the tensor's squares are not taken here."""

    site: Site
    factors: Factors | None = None
    weight: Fisher | None = None
    bias: Fisher | None = None
    now: int = 0  # calls in this pass
    waiting: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def squares(self) -> bool:
        return self.weight is not None or self.bias is not None

    @property
    def gradients(self) -> bool:
        """Whether it needs the gradient on its output."""
        return self.squares or (self.factors is not None and self.factors.outputs is not None)

    def take(self, x: Tensor, g: Tensor) -> None:
        """Add one call's input and gradient on the output; calls of a weight used twice wait for each other."""
        self.waiting.append((x, g))
        if self.now <= 1:
            self.flush()

    def flush(self) -> None:
        """Add what waits: a gradient is the sum over all uses of the weight, and is squared after that."""
        if not self.waiting:
            return
        calls, self.waiting = self.waiting, []
        site = self.site
        if site.kind in MAPS:
            self._linear([(_rows(site.rows_in(x)), _rows(site.rows_out(g))) for x, g in calls])
        elif site.kind == NORM:
            self._norm(calls)
        elif site.kind == EMBEDDING:
            self._embedding(calls)

    def _linear(self, calls: list[tuple[Tensor, Tensor]]) -> None:
        if self.bias is not None:
            self.bias.add(sum_of(g.sum(1) for _, g in calls), self.site.bias_part)
        if self.weight is None:
            return
        self.weight.reached = True
        if self.weight.full is not None:
            each = sum_of(g.mT @ x for x, g in calls)
            self.weight.add(each.mT if self.site.kind == "conv1d" else each)
            return
        total = self.weight.diagonal
        assert total is not None
        total = total if self.site.part is None else total[self.site.part]
        if self.site.kind == "conv1d":
            calls = [(g, x) for x, g in calls]  # the transposed weight
        add_squares(total.flatten(1), calls)

    def _norm(self, calls: list[tuple[Tensor, Tensor]]) -> None:
        module = self.site.module
        shape = tuple(module.normalized_shape)  # type: ignore[arg-type]
        scaled, shifts = [], []
        for x, g in calls:
            rows, back = self.site.rows_in(x), self.site.rows_out(g)
            product = F.layer_norm(rows, shape, None, None, module.eps) * back  # type: ignore[arg-type]
            between = tuple(range(1, rows.ndim - len(shape)))
            scaled.append(product.sum(between) if between else product)
            shifts.append(back.sum(between) if between else back)
        if self.weight is not None:
            self.weight.add(sum_of(scaled))
        if self.bias is not None:
            self.bias.add(sum_of(shifts))

    def _embedding(self, calls: list[tuple[Tensor, Tensor]]) -> None:
        """Gradients of the rows that an example looks up; all other rows have none."""
        assert self.weight is not None and self.weight.diagonal is not None
        self.weight.reached = True
        words, width = self.weight.diagonal.shape
        places, values = [], []
        for x, g in calls:
            ids = self.site.rows_in(x)
            examples = torch.arange(len(ids), device=ids.device).view(-1, *[1] * (ids.ndim - 1))
            places.append((examples * words + ids).flatten())
            values.append(self.site.rows_out(g).reshape(-1, width))
        place, back = torch.cat(places).unique(return_inverse=True)
        total = values[0].new_zeros(len(place), width).index_add_(0, back, torch.cat(values))
        row = place % words
        skip = self.site.module.padding_idx
        if skip is not None:
            total[row == skip] = 0  # torch gives this row no gradient
        self.weight.diagonal.index_add_(0, row, total.square_())


def _rows(t: Tensor) -> Tensor:
    """[N, ..., d] -> [N, rows of an example, d]."""
    return t.unsqueeze(1) if t.ndim == 2 else t.flatten(1, -2)


def rows_of(t: Tensor, kept: Tensor | None) -> Tensor:
    """[N, ..., d] -> [rows, d], only those at the indices ``kept``."""
    flat = t.reshape(-1, t.shape[-1])
    return flat if kept is None else flat.index_select(0, kept)


def kept_rows(site: Site, lead: tuple[int, ...], mask: Tensor | None) -> Tensor | None:
    """Indices of the rows of an activation [*lead, d] that a mask [N, T] leaves; None for all.

    A layer that sees one row an example ([N, d], after pooling) is not masked. Raises StatisticsError for a mask of
    another shape than the activation's.
    """
    if mask is None or len(lead) == 1:
        return None
    if tuple(mask.shape) != tuple(lead):
        raise StatisticsError(
            f"The mask has the shape {list(mask.shape)} and the activations of {site.where!r} are {list(lead)} rows: "
            "give mask=(a function of the layer's name and the batch) where layers have different masks."
        )
    return mask.reshape(-1).bool().nonzero().flatten()
