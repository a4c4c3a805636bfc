"""Exclusive parts: what each expert has beyond the shared model, compressed (Lu et al. 2024, sections 3.1 and 3.2)."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..engine.workers import default_threads, ordered
from ..errors import RoutingError
from ..progress import Progress, Stop, report
from .compression import DTYPES, Compression
from .parts import Dense, Exclusive, LowRank, Part, Sparse
from .truncate import by_energy, low_rank

#: Tables that are looked up or added, not multiplied with; a patch embedding is a convolution and is none of them.
_TABLE = re.compile(r"(^|[._])(\w*embed\w*|wte|wpe|cls_token|class_token)([._]|$)")


@dataclass(frozen=True)
class Decomposition:
    """``parts``: task -> exclusive part; ``kept``: task -> share of ‖v‖² that its stored part holds (1: everything)."""

    parts: Mapping[str, Exclusive]
    kept: Mapping[str, float]


def decompose(
    shared: Mapping[str, Tensor],
    experts: Mapping[str, Mapping[str, Tensor]],
    compression: Compression,
    *,
    aliases: Mapping[str, str] | None = None,
    device: str | torch.device = "cpu",
    threads: int | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Decomposition:
    """v_t = θ_t − θ_s of every expert, tensor by tensor, compressed.

    ``shared`` must be as it will be stored (rounded to its dtype), so that nothing of the difference is lost twice.
    ``aliases`` are tied names: they are left out, their targets stand for them. Tensors that are not of floating point
    (position ids, counters) never take part. Neither the order of experts nor of tensors matters.

    Raises RoutingError naming the expert and tensor where names or shapes differ or a value is not finite.
    """
    if not experts:
        raise RoutingError("There is no expert to take apart; name at least one.")
    names = [n for n, t in shared.items() if t.is_floating_point() and n not in (aliases or {})]
    for task, expert in experts.items():
        _same_names(shared, expert, task, aliases or {})
    parts: dict[str, dict[str, Part]] = {task: {} for task in experts}
    total, kept = dict.fromkeys(experts, 0.0), dict.fromkeys(experts, 0.0)

    def work(name: str) -> list[tuple[Part | None, float, float]]:
        with torch.no_grad():
            base = shared[name].to(device=device, dtype=torch.float32)
            return [
                _one(base, expert, (task, name), compression, shared[name].dtype) for task, expert in experts.items()
            ]

    for done, (name, found) in enumerate(ordered(work, names, threads or default_threads(), stop), 1):
        for task, (part, energy, lost) in zip(experts, found, strict=True):
            if part is not None:
                parts[task][name] = part
            total[task] += energy
            kept[task] += energy - lost
        report(progress, done, len(names), f"taking apart {name}")
    return Decomposition(parts, {t: kept[t] / total[t] if total[t] > 0 else 1.0 for t in experts})


def exclusive(delta: Tensor, name: str, compression: Compression, *, task: str = "") -> Part | None:
    """One exclusive vector ``delta`` (float32, any shape) of the tensor ``name``, compressed; None where it is zero.

    Vectors are kept whole. Tensors of more dimensions are matrices of their first dimension against the rest. Factors
    that would not be smaller than the matrix give way to the matrix. ``task`` seeds what is random, with the name.
    """
    table = _is_table(name, delta)
    if not bool(delta.any()) or compression.rank == 0:
        return None
    if name.endswith("bias") and not compression.biases:
        return None
    if table and compression.embeddings == "skip":
        return None
    rows, columns = matrix_shape(tuple(delta.shape))
    whole = min(rows, columns) < 2 or compression.kind == "none" or (table and compression.embeddings == "dense")
    if whole:
        return Dense(delta)
    if compression.kind == "svd":
        return _svd(delta, rows, columns, compression)
    return _sparse(delta, name, task, compression)


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """(m, n) of the matrix that a tensor is seen as: leading ones dropped, then the first dimension by the rest."""
    sizes = list(shape)
    while len(sizes) > 1 and sizes[0] == 1:
        sizes.pop(0)
    if len(sizes) < 2:
        return 1, math.prod(sizes)
    return sizes[0], math.prod(sizes[1:])


def factors_smaller(rank: int, rows: int, columns: int) -> bool:
    """Whether r·(m + n + 1) numbers are fewer than m·n."""
    return rank * (rows + columns + 1) < rows * columns


def _one(
    base: Tensor, expert: Mapping[str, Tensor], where: tuple[str, str], compression: Compression, stored: torch.dtype
) -> tuple[Part | None, float, float]:
    """(the part, ‖v‖², what of it the part leaves out) of the expert and tensor that ``where`` names."""
    task, name = where
    theirs = expert[name]
    if tuple(theirs.shape) != tuple(base.shape):
        raise RoutingError(
            f"Tensor {name!r} of the expert {task!r} has the shape {list(theirs.shape)}, the shared model "
            f"{list(base.shape)}; take experts made from the same base."
        )
    delta = theirs.to(base) - base
    if not bool(torch.isfinite(delta).all()):
        raise RoutingError(
            f"The expert {task!r} has NaN or infinity in tensor {name!r}; the file is damaged or its training "
            "diverged, so use another checkpoint."
        )
    energy = float(delta.double().square().sum()) if delta.device.type != "mps" else float(delta.square().sum())
    part = exclusive(delta, name, compression, task=task)
    if part is None:
        return None, energy, energy
    lost = 0.0 if isinstance(part, Dense) else float((part.dense() - delta).square().sum())
    dtype = DTYPES[compression.dtype] if compression.dtype else stored
    return part.to(dtype=dtype, device="cpu"), energy, lost


def _svd(delta: Tensor, rows: int, columns: int, compression: Compression) -> Part:
    matrix = delta.reshape(rows, columns)
    if compression.energy is not None:
        u, s, v = by_energy(matrix, compression.energy)
    else:
        rank = compression.rank_of(rows, columns)
        if not factors_smaller(rank, rows, columns):
            return Dense(delta)
        u, s, v = low_rank(matrix, rank, exact=compression.exact)
    if not factors_smaller(len(s), rows, columns):
        return Dense(delta)
    return LowRank(u, s, v, tuple(delta.shape))


def _sparse(delta: Tensor, name: str, task: str, compression: Compression) -> Part:
    assert compression.density is not None
    flat = delta.flatten()
    if compression.kind == "magnitude":
        count = max(1, math.floor(compression.density * flat.numel() + 1e-9))
        places = flat.abs().topk(count, sorted=False).indices.sort().values
        values = flat[places]
    else:
        key = "\0".join((str(compression.seed), name, task)).encode("utf-8", "surrogatepass")
        seed = int.from_bytes(hashlib.sha256(key).digest()[:8], "little") >> 1
        drawn = torch.rand(flat.numel(), generator=torch.Generator().manual_seed(seed))
        places = torch.nonzero(drawn < compression.density).flatten().to(flat.device)
        values = flat[places] / compression.density
    part = Sparse(places.int(), values, tuple(delta.shape))
    if part.nbytes >= delta.numel() * delta.element_size():  # places cost as much as the values that they save
        return Dense(part.dense())
    return part


def _is_table(name: str, tensor: Tensor) -> bool:
    return tensor.ndim <= 3 and "patch" not in name and bool(_TABLE.search(name))


def _same_names(
    shared: Mapping[str, Tensor], expert: Mapping[str, Tensor], task: str, aliases: Mapping[str, str]
) -> None:
    ours, theirs = set(shared) - set(aliases), set(expert) - set(aliases)
    for missing, has, lacks in ((ours - theirs, "the shared model", f"the expert {task!r}"),
                                (theirs - ours, f"the expert {task!r}", "the shared model")):  # fmt: skip
        if missing:
            some = ", ".join(repr(n[:120]) for n in sorted(missing)[:3])
            raise RoutingError(
                f"{len(missing)} tensors that {has} has are not in {lacks} ({some}); take experts made from the same "
                "base."
            )
