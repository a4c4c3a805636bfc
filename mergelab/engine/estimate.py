"""What a merge will cost: bytes exactly, memory and time roughly, all from headers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..statistics.block import pieces_of
from .gate import GATE_BYTES
from .needs import has, statistics_bytes
from .plan import Plan

# Throughputs of one ordinary core and disk, measured once on a 2-core server and rounded: for an estimate that is right
# within a factor of three or so, not for a promise.
_SECONDS_PER_ELEMENT = 2e-9  # one addition per element and model, with reading and checking
_SECONDS_PER_FLOP = 2e-10  # of an eigendecomposition in float64; products are eight times as fast
_SECONDS_PER_PRODUCT_FLOP = 2.5e-11  # of a large product in float32
_READ_BYTES = 1e9
_WRITE_BYTES = 5e8


@dataclass(frozen=True)
class Estimate:
    """``bytes_in`` are read (in ``passes`` readings; statistics too), ``bytes_out`` written, ``peak_memory`` held at
    once beyond what Python itself takes, ``seconds`` of work on ``threads`` cores."""

    bytes_in: int
    bytes_out: int
    passes: int
    peak_memory: int
    seconds: float


def output_bytes(plan: Plan) -> int:
    """The exact bytes of all tensors that are written."""
    return plan.bytes_of(plan.items)


def estimate(plan: Plan, threads: int) -> Estimate:
    """The cost of a plan that is streamed to disk with this many threads."""
    cost, count = plan.method.cost, len(plan.models) + (plan.base is not None)
    passes = 1 + cost.passes(dict(plan.values))
    sources = [*plan.models] + ([plan.base] if plan.base is not None else [])
    bytes_in = sum(int(checkpoint.nbytes) for checkpoint in sources)
    bytes_out = output_bytes(plan)
    width = 8 if "64" in str(plan.compute) else 4
    held = []
    for item in plan.items:
        working = item.numel * width * (count + cost.copies + cost.copies_per_model * len(plan.models))
        stored = sum(_stored(checkpoint, item.name) for checkpoint in sources)
        held.append((working + stored if item.merge else 0) + plan.bytes_of([item]))
    own = [statistics_bytes(plan, item) if plan.statistics and item.merge else 0 for item in plan.items]
    together = sorted(zip(held, own, strict=True), key=sum, reverse=True)[:threads]
    # The gate lets statistics in up to its limit, or a single tensor's.
    peak = sum(working for working, _ in together)
    peak += min(sum(size for _, size in together), max(GATE_BYTES, *own, 0))
    elements = sum(item.numel for item in plan.items if item.merge)
    seconds = elements * count * (passes - 1 + cost.work) * _SECONDS_PER_ELEMENT / threads
    seconds += bytes_in * passes / _READ_BYTES + bytes_out / _WRITE_BYTES
    if cost.spectral:
        seconds += _spectral_flops([item.shape for item in plan.items], len(plan.models)) * _SECONDS_PER_FLOP / threads
    seconds += sum(own) / _READ_BYTES + _product_flops(plan) * _SECONDS_PER_PRODUCT_FLOP / threads
    return Estimate(bytes_in + sum(own), bytes_out, passes, int(peak), seconds)


def _product_flops(plan: Plan) -> float:
    """Operations of the products of statistics with matrices, of the method and of the merge that it starts from."""
    total, start = 0.0, plan.start
    if isinstance(start, Plan):
        total = _product_flops(start)
    times = plan.method.cost.products(dict(plan.values))
    if not times or not plan.statistics:
        return total
    for item in plan.items:
        kinds = [kind for kind in plan.method.statistics(dict(plan.values)) if has(plan, item.name, kind)]
        entry = plan.statistics[0].entries[item.name] if kinds and plan.statistics[0] is not None else None
        if entry is None:
            continue
        pieces = pieces_of(kinds[:1], entry.pieces)
        sides = sum(entry.pieces[piece][-1] for piece in pieces if piece in ("inputs", "outputs", "full"))
        total += 2.0 * times * len(plan.models) * item.numel * max(1, sides)
    return total


def _stored(checkpoint: Any, name: str) -> int:
    info = checkpoint.infos.get(name)
    return info.nbytes if info is not None else 0


def _spectral_flops(shapes: Sequence[tuple[int, ...]], models: int) -> float:
    """Gram matrices and eigenvectors for every model, and two more for the orthogonalisation, weighed as measured."""
    total = 0.0
    for shape in shapes:
        if len(shape) >= 2:
            rows, columns = shape[0], math.prod(shape[1:])
            short, long = min(rows, columns), max(rows, columns)
            total += models * 0.25 * short * short * long + (models + 2) * 4 * short**3
    return total
