"""The passes behind the modes: what is done batch by batch, with progress, a stop, and the seconds of each phase."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import RoutingError
from ..models import Model
from ..progress import Progress, Stop, report
from .groups import Grouping, order
from .rows import RowModule

#: Pictures in a batch.
BATCH = 64


class Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds = {"features": 0.0, "router": 0.0, "merge": 0.0, "forward": 0.0}
        self._phase, self._since = "", 0.0

    def __call__(self, phase: str) -> Clock:
        self._phase = phase
        return self

    def __enter__(self) -> None:
        self._since = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds[self._phase] += time.perf_counter() - self._since


@dataclass(frozen=True, eq=False)
class Work:
    """Pictures uint8 ``[N, H, W]`` or ``[N, H, W, 3]`` to be run through a model."""

    model: Model
    images: Tensor
    batch: int = BATCH
    progress: Progress | None = None
    stop: Stop | None = None
    clock: Clock = field(default_factory=Clock)

    def batched(self, rows: RowModule, weights: Tensor) -> Tensor:
        """Features ``[N, width]``, row i under the mixture ``weights[i]``: one pass a batch."""
        with self.clock("forward"):
            return self._passes(lambda start, end: rows.weights(weights[start:end].to(self.model.device)), rows)

    def routed_at(self, rows: RowModule, layer: int, decide: Callable[[Tensor, int], Tensor]) -> Tensor:
        """The same with weights that ``decide(hidden [B, L, d], first row)`` gives before block ``layer``."""
        with self.clock("forward"):
            return self._passes(lambda start, _: rows.route_at(layer, lambda hidden: decide(hidden, start)), rows)

    def _passes(self, active: Callable[[int, int], object], rows: RowModule) -> Tensor:
        out = torch.empty(len(self.images), self.model.width)
        for start in range(0, len(self.images), self.batch):
            step(self.progress, self.stop, start, len(self.images), "one pass for all mixtures")
            end = min(start + self.batch, len(self.images))
            pixels = self.model.pixels(self.images[start:end])
            with torch.inference_mode(), active(start, end):  # type: ignore[attr-defined]
                out[start:end] = self.model.through(rows.module, pixels).float().cpu()
        if not bool(torch.isfinite(out).all()):
            raise RoutingError("The routed model gives features that are NaN or infinite; use smaller weights.")
        return out

    def merged(self, merge: Callable[[Tensor], Mapping[str, Tensor]], groups: Grouping) -> Tensor:
        """Features ``[N, width]`` with one merge a group, in the pictures' own order."""
        out = torch.empty(len(self.images), self.model.width)
        done = 0
        for g, members in enumerate(order(groups)):
            step(self.progress, self.stop, done, len(self.images), f"merge {g + 1} of {len(groups)}")
            if not len(members):
                continue
            with self.clock("merge"):
                state = self.model.prepare(merge(groups.weights[g]))
            with self.clock("forward"):
                out[members] = self.model.encode(self.images[members], self.batch, weights=state)
            done += len(members)
        return out


class _Taken(Exception):  # noqa: N818 - a way out of a pass that has given what was wanted
    def __init__(self, hidden: Tensor) -> None:
        super().__init__("taken")
        self.hidden = hidden


def _take(hidden: Tensor) -> Tensor:
    raise _Taken(hidden)


def hidden_at(model: Model, rows: RowModule, layer: int, pixels: Tensor) -> Tensor:
    """Hidden states ``[B, L, d]`` that enter block ``layer`` of the shared model; what comes after is not run."""
    try:
        with torch.inference_mode(), rows.route_at(layer, _take):
            model.through(rows.module, pixels)
    except _Taken as taken:
        return taken.hidden
    raise RoutingError(f"Pictures do not pass block {layer} of this model, so a router cannot read it.")


def step(progress: Progress | None, stop: Stop | None, done: int, total: int, text: str) -> None:
    """Look whether the work was asked to end, and say how far it is."""
    if stop is not None:
        stop.check()
    report(progress, done, total, text)
