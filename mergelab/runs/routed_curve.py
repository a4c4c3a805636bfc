"""Accuracy and bytes of a routed model by rank, from one decomposition (Lu et al. 2024, figure 6 and table 8)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import RoutingError
from ..models import Model
from ..progress import Progress, Stop, report
from ..routing.compression import Compression
from ..routing.decompose import decompose, factors_smaller, matrix_shape
from ..routing.modes import Runner
from ..routing.parts import Dense, Exclusive, LowRank, Part
from ..routing.routed import RoutedModel
from ..routing.truncate import low_rank
from . import routed_items
from .routed_items import Items

RANKS = (0, 1, 2, 4, 8, 16, 32, 64)


class Ladder:
    """One decomposition at the largest rank, cut to any smaller one. At every rank each matrix is as if it had been
    decomposed at that rank, dense where factors are not smaller."""

    def __init__(self, routed: RoutedModel, parts: Mapping[str, Exclusive], stop: Stop | None = None) -> None:
        self._routed = routed
        self._parts: dict[str, dict[str, Part]] = {}
        self._whole: dict[str, dict[str, LowRank]] = {}
        for task, mine in parts.items():
            self._parts[task], self._whole[task] = dict(mine), {}
            for name, part in mine.items():
                rows, columns = matrix_shape(part.shape)
                if isinstance(part, Dense) and min(rows, columns) > 1:  # its factors at the largest rank are no smaller
                    if stop is not None:
                        stop.check()
                    most = _most(rows, columns)
                    u, s, v = low_rank(part.dense().reshape(rows, columns), most, exact=False)
                    kept = LowRank(u, s, v, part.shape)
                    self._whole[task][name] = kept.to(dtype=part.delta.dtype)

    def at(self, rank: int) -> RoutedModel:
        """The routed model at ``rank``; 0 is the shared model."""
        parts: dict[str, dict[str, Part]] = {}
        for task, mine in self._parts.items():
            parts[task] = {n: self._cut(task, n, p, rank) for n, p in mine.items()} if rank else {}
        return replace(self._routed, parts=parts)

    def _cut(self, task: str, name: str, part: Part, rank: int) -> Part:
        if isinstance(part, LowRank):
            return part.cut(rank)
        whole = self._whole[task].get(name)
        return whole.cut(rank) if whole is not None and factors_smaller(rank, *matrix_shape(part.shape)) else part


def _most(rows: int, columns: int) -> int:
    """The largest rank whose factors are smaller than the matrix, at least 1."""
    rank = max(1, rows * columns // (rows + columns + 1))
    return rank if factors_smaller(rank, rows, columns) or rank == 1 else rank - 1


def curve(
    model: Model, routed: RoutedModel, experts: Mapping[str, Mapping[str, Tensor]], items: Items, *,
    settings: Compression, ranks: Sequence[int] = RANKS, progress: Progress | None = None, stop: Stop | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Accuracy on ``items`` by rank, with the router's weights of ``routed``, and the bytes that are stored.

    ``points``: one dict a rank with rank (None: nothing left out, at the end), bytes (as :meth:`RoutedModel.bytes`),
    accuracy by head policy: ``{"oracle": {"mean", "tasks"}, "router_argmax": …, "max_logit": …}``, mode, seconds.
    The router reads the shared model, so its weights are the same at every rank.
    """
    wanted = sorted({int(rank) for rank in ranks})
    if not wanted or wanted[0] < 0:
        raise RoutingError("The ranks of a curve are whole numbers from 0.")
    steps = len(wanted) + 3
    report(progress, 0, steps, "Weights of the router")
    weights = _weights(Runner(routed, model), items, stop)
    report(progress, 1, steps, f"Taking {len(experts)} experts apart up to rank {wanted[-1]}")
    how = {"embeddings": settings.embeddings, "biases": settings.biases, "dtype": settings.dtype}
    found = decompose(routed.shared, experts, Compression(rank=max(1, wanted[-1]), **how), stop=stop)  # type: ignore[arg-type]
    ladder = Ladder(routed, found.parts, stop)
    points = []
    for done, rank in enumerate(wanted):
        report(progress, 2 + done, steps, f"Measuring rank {rank}")
        points.append({"rank": rank, **_point(ladder.at(rank), model, items, weights, stop)})
    report(progress, steps - 1, steps, "Measuring with nothing left out")
    whole = decompose(routed.shared, experts, Compression(kind="none", **how), stop=stop)  # type: ignore[arg-type]
    everything = replace(routed, parts=whole.parts)
    if min(found.kept.values()) > 1 - 1e-4:  # the largest rank left nothing out: the same model, stored whole
        points.append({**points[-1], "rank": None, "bytes": everything.bytes(), "mode": f"as rank {wanted[-1]}"})
    else:
        points.append({"rank": None, **_point(everything, model, items, weights, stop)})
    return {"names": list(routed.names), "per_task": len(items) // max(1, len(routed.names)), "points": points}


def _weights(runner: Runner, items: Items, stop: Stop | None) -> Tensor:
    rows = torch.empty(len(items), len(runner.routed.names))
    for mine, images in items.batches():
        rows[mine] = runner.routed.gate.weights(runner.logits(runner.features(images, stop=stop)))
    return rows


def _point(routed: RoutedModel, model: Model, items: Items, weights: Tensor, stop: Stop | None) -> dict[str, Any]:
    started = time.perf_counter()
    features, _, modes = routed_items.run(Runner(routed, model), items, weights, "auto", stop=stop)
    accuracy = {}
    for policy in routed_items.HEADS:
        answer = routed_items.read(features, routed.heads, routed.names, policy, weights=weights, owner=items.owner)
        right = answer.right(items).float()
        tasks = {name: float(right[items.owner == i].mean()) for i, name in enumerate(routed.names)}
        accuracy[policy] = {"mean": sum(tasks.values()) / len(tasks), "tasks": tasks}
    return {"bytes": routed.bytes(), "accuracy": accuracy, "mode": modes[0], "seconds": time.perf_counter() - started}
