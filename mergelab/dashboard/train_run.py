"""One training run of a visitor, as its followers see it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .jobs import Step

if TYPE_CHECKING:
    from torch import Tensor

_OVER = ("paused", "stopped", "failed", "done")


@dataclass
class Looking:
    """A look at the weights of a run that is done. ``cost``: what will be measured, once that is known."""

    status: str = "running"
    said: str = ""
    step: Step | None = None
    cost: Mapping[str, Mapping[str, int]] | None = None

    @property
    def over(self) -> bool:
        return self.status in _OVER


@dataclass
class Run:
    """A run as its followers see it. ``version`` rises whenever ``document``, ``current`` or ``result`` is new.

    ``document``: what is known so far, as :mod:`mergelab.runs.training.compare` writes it. ``current``: the current
    model in plain values (name, round, how the round's task vectors lie); its tensors are ``state``. ``result``: the
    current model measured as the Results tab shows it. ``look``: what a look at its weights found, ``looking`` how far
    the last one is.
    """

    name: str
    folder: Path
    selection: dict[str, Any]
    recipe: dict[str, Any]
    beside: tuple[str, ...]
    status: str = "running"
    said: str = ""
    step: Step | None = None
    version: int = 0
    document: dict[str, Any] | None = None
    current: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    look: dict[str, Any] | None = field(default=None, repr=False)
    looking: Looking | None = None
    state: Mapping[str, Tensor] | None = field(default=None, repr=False)
    _begun: tuple[float, float] | None = None

    @property
    def over(self) -> bool:
        return self.status in _OVER

    def moves(self, step: Step) -> None:
        """Note how far it is; seconds left are told from what was done since it began or went on."""
        share = step.done / step.total if step.total else 0.0
        if self._begun is None and step.total:
            self._begun = (time.perf_counter(), share)
        self.step = step

    def left(self) -> float | None:
        """Seconds until it ends, from the share that is done; None while too little is."""
        if self._begun is None or self.step is None or not self.step.total:
            return None
        began, share = self._begun
        done = self.step.done / self.step.total
        if done - share < 0.03:
            return None
        return (time.perf_counter() - began) * (1 - done) / (done - share)

    def begins(self) -> None:
        self.status, self.said, self.step, self._begun = "running", "", None, None
