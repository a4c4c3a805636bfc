"""One collection of statistics: probed with its first batch, then batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import StatisticsError
from ..statistics import Block
from .capture import BACKWARD, FORWARD, OFF, PROBE, Capture, MaskFunction
from .inputs import Batch
from .labels import Labels
from .prepared import prepared
from .probe import Probe
from .rest import Forward, Rest
from .sites import find
from .wanted import Findings, Options, Wanted, check_maps, chosen, decide

_NO_GRAPH = (
    "The logits have no gradient: forward ran under torch.no_grad or inference_mode, or detached them. Let gradients "
    "pass, or collect 'gram' only."
)


class Work:
    """One collection: probed with its first batch, then batch by batch."""

    def __init__(
        self,
        module: nn.Module,
        forward: Forward,
        options: Options,
        labels: Labels | None,
        *,
        mask: MaskFunction | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise StatisticsError(f"Statistics are float32 or float64, not {str(dtype).removeprefix('torch.')}.")
        self.module, self.forward, self.options, self.labels, self.dtype = module, forward, options, labels, dtype
        own = next((p.device for p in module.parameters()), torch.device("cpu"))
        self.device = own if device is None else torch.device(device)
        self.sites = find(module)
        check_maps(options, self.sites, chosen(module, options.names))
        self.capture = Capture(self.sites, mask)
        self.wanted: Wanted | None = None
        self.examples = self.passes = 0
        self._rest: Rest | None = None
        self._frozen = True

    @contextmanager
    def open(self) -> Iterator[Work]:
        """Within the block the module is made ready and watched."""
        with ExitStack() as stack:
            stack.enter_context(prepared(self.module, self.dtype, self.device))
            stack.enter_context(self.capture.attached())
            yield self

    def run(self, batch: Batch) -> None:
        """Add a batch."""
        batch = batch.to(self.device, self.dtype)
        if not batch.size:
            return
        if self.wanted is None:
            self.probe(batch)
        wanted, capture = self.wanted, self.capture
        assert wanted is not None
        capture.begin()
        with torch.set_grad_enabled(self.options.fisher):
            with capture.watching(FORWARD, batch):
                logits = self._logits(batch.inputs)
            capture.check("What goes into")
            self._check(logits, batch)
            if self.labels is not None:
                self._backward(logits, batch)
        self.examples += batch.size

    def probe(self, batch: Batch) -> None:
        """Find out, with one example, how the model uses its weights, and decide what is added up."""
        capture, probe = self.capture, Probe()
        capture.probe, capture.gradients = probe, self.options.fisher
        one = batch.take(torch.zeros(1, dtype=torch.int64))
        loose = [p for p in self.module.parameters() if p.is_floating_point() and self.options.fisher]
        with capture.watching(PROBE, batch), torch.set_grad_enabled(self.options.fisher):
            _require(loose, True)
            logits = self._logits(one.inputs)
            with capture.watching(OFF):  # checkpointed blocks are run again
                gradients = self._gradients(logits)
            _require(loose, False)
            probe.once = False
            with torch.no_grad():
                self._logits(batch.take(torch.zeros(2, dtype=torch.int64)).inputs)
        probe.conclude(self.sites.all)
        self._frozen = not (self.options.fisher and probe.no_grad)
        if not self._frozen:  # a checkpointed block passes gradients on only if something before it needs one
            _require(loose, True)
        unused = [name for name, gradient in gradients.items() if gradient is None]
        apart = self._misled(one, gradients) if gradients else set()
        self.wanted = self._decide(self.options, Findings(unused, apart))
        if self.wanted.rest:
            self._rest = Rest(self.module, self.forward, self.wanted.rest)

    def _decide(self, options: Options, found: Findings) -> Wanted:
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        wanted = decide(self.module, self.sites, options, found, like)
        self.capture.taps = wanted.taps
        return wanted

    def _gradients(self, logits: Tensor) -> dict[str, Tensor | None]:
        """Every parameter's gradient of one example's logits in some direction; None where they do not depend on it."""
        if not self.options.fisher:
            return {}
        if not logits.requires_grad:
            raise StatisticsError(_NO_GRAPH)
        if not self.options.kinds & {"diag", "block"}:
            return {}
        try:
            torch.autograd.backward(logits, _direction(logits))
        except RuntimeError as error:
            if "inplace" not in str(error):
                raise
            raise StatisticsError(
                "Something that a layer took is changed in place afterwards, so gradients of its weight cannot be "
                "taken: make that operation of the model return a new tensor, or collect 'gram' and 'kfac' only."
            ) from None
        found = {name: parameter.grad for name, parameter in self.module.named_parameters()}
        self._clear()
        return found

    def _misled(self, one: Batch, gradients: Mapping[str, Tensor | None]) -> set[str]:
        """Tensors whose gradient is not what their sites see (a weight that is also read elsewhere, past its layer)."""
        unused = [name for name, gradient in gradients.items() if gradient is None]
        wanted = self._decide(replace(self.options, kinds=frozenset({"diag"}), leave={}), Findings(unused))
        self.capture.begin()
        with self.capture.watching(FORWARD, one):
            logits = self._logits(one.inputs)
        if logits.requires_grad and wanted.taps:
            with self.capture.watching(BACKWARD, one):
                torch.autograd.backward(logits, _direction(logits))
            self.capture.flush()
        self._clear()
        out = set()
        for name, fisher in wanted.fishers.items():
            gradient = gradients[name]
            if name in wanted.rest or gradient is None or fisher.diagonal is None:
                continue
            squares = gradient.square()
            gap = float((squares - fisher.diagonal).abs().max()) if squares.numel() else 0.0
            if gap > 1e-2 * float(squares.abs().max()):  # what is not finite is found, and said, elsewhere
                out.add(name)
        return out

    def _clear(self) -> None:
        for parameter in self.module.parameters():
            parameter.grad = None

    def _logits(self, inputs: Any) -> Tensor:
        logits = self.forward(self.module, inputs)
        if not isinstance(logits, Tensor) or logits.ndim not in (2, 3):
            shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise StatisticsError(f"forward must give logits [N, K] or [N, T, K], found {shape}.")
        return logits

    def _check(self, logits: Tensor, batch: Batch) -> None:
        if len(logits) != batch.size:
            raise StatisticsError(f"forward gave logits of {len(logits)} examples for a batch of {batch.size}.")
        if not bool(logits.detach().isfinite().all()):
            raise StatisticsError(
                "The logits hold NaN or infinity, so no statistics can be taken: look for weights or inputs that "
                "overflow."
            )

    def _backward(self, logits: Tensor, batch: Batch) -> None:
        assert self.labels is not None and self.wanted is not None
        if not logits.requires_grad and self.wanted.taps:
            raise StatisticsError(_NO_GRAPH)
        count = self.labels.count(logits, batch.labels, batch.mask)
        for n, cotangent in enumerate(self.labels.passes(logits, batch.labels, batch.mask)):
            self.passes += 1
            if self.wanted.taps:
                with self.capture.watching(BACKWARD, batch):
                    torch.autograd.backward(logits, cotangent, retain_graph=n + 1 < count)
                self.capture.flush()
                self.capture.check("The gradient on the output of")
            if self._rest is not None:
                for found in self._rest.gradients(batch, cotangent):
                    for name, gradients in found.items():
                        self.wanted.fishers[name].add(gradients)
        if not self._frozen:
            self._clear()

    def notes(self) -> dict[str, Any]:
        """What the header should say about how it was done."""
        said: dict[str, Any] = {}
        if self._rest is not None and self._rest.alone:
            said["one_by_one"] = self._rest.alone
        if self.options.fisher:
            said["backward_passes"] = self.passes
        return said

    def finish(self) -> tuple[dict[str, Block], dict[str, str]]:
        """Averages, in the order of the module's tensors, and what is left out with the reason."""
        wanted = self.wanted
        assert wanted is not None
        skipped = dict(wanted.skipped)
        blocks: dict[str, Block] = {}
        for name, parameter in self.module.named_parameters():
            pieces = {**self._factors(name, skipped), **self._fisher(name, skipped)}
            if pieces:
                factors = wanted.factors.get(name)
                blocks[name] = Block(
                    **{key: value.cpu() for key, value in pieces.items()},
                    rows=0 if factors is None else factors.rows,
                    examples=self.examples if "diagonal" in pieces or "full" in pieces else 0,
                    layout=wanted.layouts.get(name, ""),
                    shape=tuple(parameter.shape),
                )
        return blocks, skipped

    def _factors(self, name: str, skipped: dict[str, str]) -> dict[str, Tensor]:
        assert self.wanted is not None
        factors = self.wanted.factors.get(name)
        if factors is None or factors.inputs is None or factors.mean is None:
            return {}
        if not factors.rows:
            raise StatisticsError(f"All rows of {name!r} are masked, so there is nothing to average.")
        pieces = {"inputs": factors.inputs.mean(factors.rows)[0], "mean": factors.mean / factors.rows}
        if factors.outputs is not None and factors.reached:
            pieces["outputs"] = factors.outputs.mean(factors.rows)
        elif factors.outputs is not None:
            skipped.setdefault(name, "its output gradient is left out: no gradient reaches it")
        return pieces

    def _fisher(self, name: str, skipped: dict[str, str]) -> dict[str, Tensor]:
        assert self.wanted is not None
        fisher = self.wanted.fishers.get(name)
        if fisher is None:
            return {}
        if not fisher.reached:
            skipped.setdefault(name, "no gradient reaches it")
            return {}
        pieces = {}
        if fisher.diagonal is not None:
            pieces["diagonal"] = fisher.diagonal / self.examples
        if fisher.full is not None:
            full = fisher.full / self.examples
            pieces["full"] = (full + full.T) / 2
        return pieces


def _require(parameters: Iterable[nn.Parameter], needs: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(needs)


def _direction(logits: Tensor) -> Tensor:
    """Some gradient on the logits in which nothing cancels."""
    draw = torch.Generator().manual_seed(0)
    return torch.randn(logits.shape, generator=draw, dtype=logits.dtype).to(logits.device)
