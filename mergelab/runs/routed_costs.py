"""What routed models cost: bytes against the number of tasks, and seconds by mode and batch size."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..checkpoints import TensorInfo
from ..errors import MergeLabError
from ..progress import Progress, Stop, report
from ..routing.compression import Compression
from ..routing.decompose import factors_smaller, matrix_shape
from ..routing.modes import Runner
from ..routing.routed import RoutedModel
from ..routing.routers import RouterSettings
from ..zoo import zoo_folders

TIMED = ("adapter", "one_pass", "static", "group", "per_input")


def storage(routed: RoutedModel, shipped: Mapping[str, int | None] | None = None) -> dict[str, Any]:
    """Bytes of tensors for 1 to T tasks, added in the model's order; heads are in every line, routers where one is.

    ``lines``: name -> bytes for 1, 2, …, T tasks:

    - ``static merge``: one model |θ|·b;
    - ``all experts kept``: t·|θ|·b and the router;
    - ``experts as shipped``: |θ|·b and the files of the first t adapters (only where all are adapters);
    - ``routed, as built``: the shared model, the stored parts of the first t tasks, the router;
    - ``routed, rank 1`` and ``rank-matched adapters``: |θ|·b and t·Σ min(r·(m + n + 1), m·n) over the matrices that any
      expert changes, vectors whole, and the router; adapters are factors of θ_t − θ_0 in place of θ_t − θ_s;
    - ``EMR / TALL masks``: the base, one unified task vector over the changed tensors, and one bit a task and number
      of them (Huang et al. 2024; Wang et al. 2024). The task must be told, or a router added.
    """
    sizes = routed.bytes()
    names, whole = routed.names, sizes["shared"]
    width = _width(routed)
    head = [_size([routed.heads[n]]) if n in routed.heads else 0 for n in names]
    parts = [sum(p.nbytes for p in routed.parts[name].values()) for name in names]
    changed = {tensor for name in names for tensor in routed.parts[name]}
    shapes = [tuple(routed.shared[n].shape) for n in changed]
    numbers = sum(math.prod(shape) for shape in shapes)
    one, matched = (width * sum(_numbers(shape, r) for shape in shapes) for r in (1, max(1, routed.rank)))
    files = [(shipped or {}).get(name) for name in names]
    lines: dict[str, list[int]] = {}
    for t in range(1, len(names) + 1):
        heads, router = sum(head[:t]), sizes["router"]
        row = {
            "static merge": whole + heads,
            "routed, as built": whole + sum(parts[:t]) + router + heads,
            "routed, rank 1": whole + t * one + router + heads,
            f"adapters of rank {max(1, routed.rank)} on the base": whole + t * matched + router + heads,
            "EMR / TALL masks": whole + width * numbers + t * math.ceil(numbers / 8) + heads,
            "all experts kept": t * whole + router + heads,
        }
        if all(size is not None for size in files):
            row["experts as shipped"] = whole + sum(size or 0 for size in files[:t]) + router + heads
        for name, value in row.items():
            lines.setdefault(name, []).append(value)
    return {"tasks": list(names), "lines": lines, "parts": sizes, "rank": routed.rank, "bytes_a_number": width}


def _numbers(shape: tuple[int, ...], rank: int) -> int:
    rows, columns = matrix_shape(shape)
    if min(rows, columns) > 1 and factors_smaller(rank, rows, columns):
        return rank * (rows + columns + 1)
    return math.prod(shape)


def _width(routed: RoutedModel) -> int:
    """Bytes of one number of the shared model, where all are alike (the largest otherwise)."""
    return max(t.element_size() for t in routed.shared.values() if t.is_floating_point())


def _size(heads: Sequence[Any]) -> int:
    tensors = [t for head in heads for t in (head.weight, head.bias) if t is not None]
    return sum(t.numel() * t.element_size() for t in tensors)


def adapter_bytes(source: str) -> int | None:
    """Bytes of an expert's own file where it is a LoRA adapter of a zoo or a local folder, else None."""
    zoo, _, expert = source.removeprefix("zoo:").partition("/")
    folder = zoo_folders()[zoo] / "experts" / expert if source.startswith("zoo:") and zoo in zoo_folders() else None
    folder = folder or Path(source)
    file = folder / "adapter_model.safetensors"
    try:
        return file.stat().st_size if file.is_file() else None
    except (OSError, MergeLabError):
        return None


def estimate(
    infos: Mapping[str, TensorInfo], experts: int, settings: Compression, router: RouterSettings, pictures: int
) -> dict[str, Any]:
    """What building will take, from the base's headers alone: ``bytes`` of the whole routed model (None where only the
    spectrum will tell), heads aside, and ``seconds``. An upper bound: tensors that no expert changes cost nothing."""
    shapes = [tuple(info.shape) for info in infos.values() if info.dtype.startswith(("F", "BF"))]
    whole, numbers = sum(info.nbytes for info in infos.values()), sum(math.prod(shape) for shape in shapes)
    kept = sum(_kept(shape, settings) for shape in shapes)
    width = max((shape[0] for shape in shapes if len(shape) == 1), default=0)  # at most; often of the widest layer
    d = width // 4 or width
    learnt = {"mlp": 6 * d * d, "knn": experts * pictures * d}.get(router.kind, experts * d)
    total = whole + round(experts * kept * whole / max(numbers, 1)) + 2 * 4 * learnt
    seconds = experts * numbers * (_SECONDS_A_NUMBER + pictures * _SECONDS_A_PRODUCT)
    return {"bytes": None if settings.energy is not None else total, "seconds": seconds, "experts": experts}


def _kept(shape: tuple[int, ...], settings: Compression) -> int:
    """Numbers that are stored of one tensor of one expert."""
    rows, columns = matrix_shape(shape)
    if min(rows, columns) < 2 or settings.kind == "none" or settings.energy is not None:
        return math.prod(shape)
    if settings.kind != "svd":  # a place and a value, where the place takes twice a value's bytes
        return min(math.prod(shape), math.ceil(3 * (settings.density or 1) * math.prod(shape)))
    return 0 if settings.rank == 0 else _numbers(shape, settings.rank_of(rows, columns))


#: Measured on the starter zoo: taking apart one number of one expert, and reading one picture for each weight.
_SECONDS_A_NUMBER, _SECONDS_A_PRODUCT = 1.5e-7, 4e-10


def latency(
    runner: Runner, images: Tensor, *, sizes: Sequence[int] = (1, 8, 32, 64), modes: Sequence[str] = TIMED,
    seconds: float = 20.0, repeats: int = 3, progress: Progress | None = None, stop: Stop | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Seconds a batch: the median of up to ``repeats`` runs, after one to warm up, the router's reading included.

    ``rows``: mode -> one number a size, None where it was left out: the mode cannot serve here, or it would not have
    fitted into its share of ``seconds``; ``why``: "mode/size" -> the reason. ``plain`` is one forward pass of the
    shared model. Time that a mode leaves over goes to those after it, so the dear ones come last.
    """
    rows: dict[str, list[float | None]] = {}
    why: dict[str, str] = {}
    wanted = [size for size in sizes if size <= len(images)]
    todo = ["plain", *modes]
    end = time.perf_counter() + seconds
    for place, mode in enumerate(todo):
        now = time.perf_counter()
        until = now + max(0.0, end - now) / (len(todo) - place)
        rows[mode] = []
        guess = 0.0
        for size in wanted:
            if stop is not None:
                stop.check()
            report(
                progress,
                place * len(wanted) + wanted.index(size),
                len(todo) * len(wanted),
                f"Timing {mode}, {size} at once",
            )
            found, reason = _timed(runner, images[:size], mode, (until, guess, repeats))
            rows[mode].append(found)
            if reason:
                why[f"{mode}/{size}"] = reason
            following = wanted[wanted.index(size) + 1] if size != wanted[-1] else size
            guess = (found if found is not None else guess) * following / size
    return {"sizes": wanted, "rows": rows, "why": why, "repeats": repeats}


def _timed(runner: Runner, images: Tensor, mode: str, budget: tuple[float, float, int]) -> tuple[float | None, str]:
    """(median seconds, "") or (None, why not). ``budget``: the end, a guess of one run's seconds, how many runs."""
    end, guess, repeats = budget
    left = end - time.perf_counter()
    if left <= 0 or 1.5 * guess > left:
        return None, f"one batch would take about {guess:.1f} s" if guess else "no time was left"

    def once() -> float:
        started = time.perf_counter()
        if mode == "plain":
            runner.features(images)
        elif mode == "static":
            names = runner.routed.names
            runner.run(images, [1 / len(names)] * len(names), "static")
        else:
            runner.run(images, None, mode)
        return time.perf_counter() - started

    try:
        warm = once()
        if time.perf_counter() + warm > end:
            return warm, ""
        taken = [once()]
        while len(taken) < repeats and time.perf_counter() + taken[0] < end:
            taken.append(once())
    except MergeLabError as error:
        return None, str(error)
    return statistics.median(taken), ""
