"""Inputs of several tasks as one stream through a routed model, and what came out, task by task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import RoutingError, suggest
from .gate import Gate, fixed, one_hot, uniform
from .groups import Centroids
from .modes import GroupSettings, Ran, Runner


class Inputs:
    """Sets of pictures as one stream through the runner, in a fixed order, and what came out set by set."""

    def __init__(self, runner: Runner, sets: list[Tensor], names: list[str], order: str, seed: int) -> None:
        self.runner, self.sets, self.names, self.order, self.seed = runner, sets, names, order, seed
        tasks = len(runner.routed.names)
        self.features = [torch.empty(len(images), runner.model.width) for images in sets]
        self.weights = [torch.empty(len(images), tasks) for images in sets]
        self.logits: list[Tensor | None] = [None for _ in sets]
        self.groups = [torch.zeros(len(images), dtype=torch.int64) for images in sets]
        self.seconds: dict[str, float] = {}
        self.merges, self.mode, self.why, self.grouped = 0, "", "", False

    def run(  # noqa: PLR0917
        self,
        weights: Any,
        mode: str,
        gate: Gate | None,
        grouping: GroupSettings | Centroids,
        batch: int,
        progress: Any,
        stop: Any,
    ) -> None:
        for members in self._same_size():
            owner = torch.cat([torch.full((len(self.sets[i]),), i) for i in members])
            place = torch.cat([torch.arange(len(self.sets[i])) for i in members])
            if self.order == "mixed":
                shuffled = torch.randperm(len(owner), generator=torch.Generator().manual_seed(self.seed))
                owner, place = owner[shuffled], place[shuffled]
            pictures = torch.empty((len(owner), *self.sets[members[0]].shape[1:]), dtype=torch.uint8)
            for i in members:
                pictures[owner == i] = self.sets[i][place[owner == i]]
            ran = self.runner.run(
                pictures, self._weights(weights, owner), mode, gate=gate, grouping=grouping, batch=batch,
                progress=progress, stop=stop,
            )  # fmt: skip
            self._keep(ran, members, owner, place)

    def _same_size(self) -> list[list[int]]:
        """Sets by the size of their pictures, for one stream holds pictures of one size."""
        found: dict[tuple[int, ...], list[int]] = {}
        for i, images in enumerate(self.sets):
            if len(images):
                found.setdefault(tuple(images.shape[1:]), []).append(i)
        return list(found.values())

    def _weights(self, weights: Any, owner: Tensor) -> Tensor | None:
        names = self.runner.routed.names
        if weights is None:
            return None
        if not isinstance(weights, str):
            return fixed(weights, len(owner), allow_negative=True)
        known("weights", weights, ("oracle", "uniform"))
        if weights == "uniform":
            return uniform(len(owner), len(names))
        rows = torch.zeros(len(owner), len(names))  # a task without an expert gets the shared model alone
        for i, name in enumerate(self.names):
            if name in names:
                rows[owner == i] = one_hot(names.index(name), len(names))
        return rows

    def _keep(self, ran: Ran, members: list[int], owner: Tensor, place: Tensor) -> None:
        for i in members:
            mine = torch.nonzero(owner == i).flatten()
            at = place[mine]
            self.features[i][at] = ran.features[mine]
            self.weights[i][at] = ran.weights[mine]
            if ran.logits is not None:
                kept = torch.empty(len(at), ran.logits.shape[1])
                kept[at] = ran.logits[mine]
                self.logits[i] = kept
            if ran.grouping is not None:
                self.groups[i][at] = ran.grouping.index[mine]
                self.grouped = True
        for phase, seconds in ran.seconds.items():
            self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds
        self.merges += ran.merges
        self.mode, self.why = ran.mode, ran.why


def known(what: str, value: Any, allowed: Sequence[str]) -> None:
    """RoutingError with a suggestion where ``value`` is none of ``allowed``."""
    if value not in allowed:
        raise RoutingError(f"There is no {what} {value!r}.{suggest(str(value), allowed)}")
