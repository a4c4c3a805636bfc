"""Hooks on a module: inputs of its linear layers on the way forward, gradients on their outputs on the way back.

Gradients are taken with ``Tensor.register_hook`` from the forward hook, which activations changed in place and
checkpointed blocks leave intact. Parameters need no gradient: the first output of interest is made to require one.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import StatisticsError
from .attention import opened
from .inputs import Batch
from .probe import Probe
from .sites import MAPS, Site, Sites, version
from .sums import Outer
from .taps import Tap, kept_rows, rows_of

#: ``mask(layer, batch)`` gives the mask [N, T] of a layer's tokens, or None where all count.
MaskFunction = Callable[[str, Batch], "Tensor | None"]

OFF, PROBE, FORWARD, BACKWARD = "off", "probe", "forward", "backward"


class Capture:
    """Watches a module while ``attached``; what is seen goes to the taps."""

    def __init__(self, sites: Sites, mask: MaskFunction | None = None) -> None:
        self.sites = sites
        self.taps: dict[Site, Tap] = {}
        self.probe: Probe | None = None
        self.gradients = False
        self._mask = mask
        self._phase = OFF
        self._batch: Batch | None = None
        self._sums: list[tuple[str, Tensor]] = []
        self._kept: dict[tuple[int, tuple[int, ...]], tuple[Tensor, Tensor | None]] = {}
        self._last: tuple[Any, int, int, Outer, Tensor, int] | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Within the block the hooks are in place."""
        with ExitStack() as stack:
            for module in self.sites.hooked:
                handle = module.register_forward_hook(self._hook, with_kwargs=True)
                stack.callback(handle.remove)
            stack.enter_context(opened(self.sites.attention, self._tell))
            yield

    @contextmanager
    def watching(self, phase: str, batch: Batch | None = None) -> Iterator[None]:
        """Within the block calls count as a probe's, as a pass forward, or as made anew on the way back."""
        former, self._phase = self._phase, phase
        if batch is not None:
            self._batch = batch
        try:
            yield
        finally:
            self._phase = former
            self._last = None

    def begin(self) -> None:
        """A new batch."""
        self._sums.clear()
        self._kept.clear()
        for tap in self.taps.values():
            tap.now = 0
            tap.waiting.clear()

    def check(self, what: str) -> None:
        """Raise StatisticsError if anything seen since the last check was not finite, naming the first layer."""
        if self._sums:
            finite = torch.stack([value.double() if value.device.type != "mps" else value for _, value in self._sums])
            bad = (~finite.isfinite()).nonzero().flatten()
            if len(bad):
                raise StatisticsError(
                    f"{what} the layer {self._sums[int(bad[0])][0]!r} holds NaN or infinity, so no statistics can be "
                    "taken: look for weights or inputs that overflow."
                )
        self._sums.clear()

    def flush(self) -> None:
        """The end of a backward pass."""
        for tap in self.taps.values():
            tap.flush()

    # -- what the hooks do -----------------------------------------------------------------------------------------

    def _hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if self._phase == OFF:
            return None
        x = args[0] if args else kwargs.get("input", next(iter(kwargs.values()), None))
        if not isinstance(x, Tensor) or not isinstance(output, Tensor):
            return None
        seen = self._see(self.sites.hooked[module], x, output)
        return None if seen is output else seen

    def _tell(self, module: nn.MultiheadAttention, projection: str, x: Tensor, y: Tensor) -> Tensor:
        return y if self._phase == OFF else self._see(self.sites.attention[module][projection], x, y)

    def _see(self, site: Site, x: Tensor, y: Tensor) -> Tensor:
        if self._phase == PROBE:
            assert self.probe is not None
            self.probe.note(site, x, y)
            return y
        tap = self.taps.get(site)
        if tap is None:
            return y
        first = self._phase == FORWARD
        tap.now += first
        kept = self._inputs(tap, x, first)
        if not (self.gradients and tap.gradients):
            return y
        if not y.requires_grad:
            if not torch.is_grad_enabled():  # a checkpointed block; it is run again on the way back
                return y
            y = y.detach().requires_grad_().clone()  # a leaf could not be changed in place
        held = x.detach() if tap.squares else None

        def back(gradient: Tensor) -> None:
            with torch.no_grad():
                self._back(tap, held, gradient.detach(), kept)

        y.register_hook(back)
        return y

    def _inputs(self, tap: Tap, x: Tensor, first: bool) -> Tensor | None:
        """Add a call's input to A (if it is the ``first`` time this call is seen); gives the rows that count."""
        site, factors = tap.site, tap.factors
        if site.kind not in MAPS:
            return None
        with torch.no_grad():
            if factors is None:
                self._sums.append((site.where, x.detach().sum()))
                return None
            rows = site.rows_in(x.detach())
            kept = self._rows_that_count(site, tuple(rows.shape[:-1]))
            if first:
                self._add_inputs(tap, x, rows, kept)
        return kept

    def _add_inputs(self, tap: Tap, x: Tensor, rows: Tensor, kept: Tensor | None) -> None:
        """A += x xᵀ; layers that take the very same tensor one after another share the product."""
        factors, site = tap.factors, tap.site
        assert factors is not None and factors.inputs is not None and factors.mean is not None
        if site.group is not None and self._last is not None:
            seen, before, mask, product, total, count = self._last
            if seen() is x and before == version(x) and mask == id(kept):
                factors.inputs.add_sum(product)
                factors.mean.add_(total)
                factors.rows += count
                return
        flat = rows_of(rows, kept).to(factors.mean.dtype)
        total = flat.sum(0)
        if site.group is not None:
            product = Outer(flat.shape[1], like=flat)
            product.add(flat)
            factors.inputs.add_sum(product)
            self._last = (weakref.ref(x), version(x), id(kept), product, total, len(flat))
        else:
            factors.inputs.add(flat)
        factors.mean.add_(total)
        factors.rows += len(flat)
        self._sums.append((site.where, total.sum()))

    def _back(self, tap: Tap, x: Tensor | None, g: Tensor, kept: Tensor | None) -> None:
        site, factors = tap.site, tap.factors
        if site.kind in MAPS:
            rows = site.rows_out(g)
            flat = rows_of(rows, kept)
            self._sums.append((site.where, flat.sum()))
            if factors is not None and factors.outputs is not None:
                factors.outputs.add(flat.to(factors.outputs.sum.dtype))
                factors.reached = True
        if x is not None:
            tap.take(x, g)

    def _rows_that_count(self, site: Site, lead: tuple[int, ...]) -> Tensor | None:
        batch = self._batch
        assert batch is not None
        if self._mask is None and batch.mask is None:
            return None
        mask = batch.mask if self._mask is None else self._mask(site.where, batch)
        if mask is None:
            return None
        found = self._kept.get((id(mask), lead))
        if found is None:
            found = self._kept[id(mask), lead] = (mask, kept_rows(site, lead, mask))
        return found[1]
