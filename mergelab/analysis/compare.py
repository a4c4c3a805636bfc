"""How task vectors lie to each other: cosines, norms and sign conflicts, per layer and for the whole model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..progress import Progress, Stop, report
from .layers import layers_of
from .tables import ConflictTable, CosineTable, Geometry, Matrix, NormTable

#: Entries looked at together: with eight experts their differences stay in the processor's cache.
CHUNK = 1 << 16


class _Sums:
    """What is added up over the tensors of one layer, in float64."""

    def __init__(self, models: int) -> None:
        self.gram = torch.zeros(models, models, dtype=torch.float64)  # <tau_i, tau_j>
        self.base = 0.0  # ||theta_0||^2
        self.entries = 0
        self.conflicts = 0  # entries where both signs occur
        self.touched = 0  # entries that at least two experts change
        self.opposed = torch.zeros(models, models, dtype=torch.float64)  # entries with opposite signs, per pair
        self.both = torch.zeros(models, models, dtype=torch.float64)  # entries that both change, per pair

    def __add__(self, other: _Sums) -> _Sums:
        out = _Sums(len(self.gram))
        for key in vars(out):
            setattr(out, key, getattr(self, key) + getattr(other, key))
        return out


def geometry(
    base: Mapping[str, Tensor],
    experts: Mapping[str, Mapping[str, Tensor]],
    *,
    deltas: bool = False,
    density: float | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Geometry:
    """Compare the task vectors tau_t = theta_t - theta_0 of ``experts``, reading one tensor of every model at a time.

    Args:
        base: theta_0, name -> tensor.
        experts: display name -> theta_t (or tau_t itself if ``deltas``), with the same names and shapes.
        density: for the sign conflicts only, keep the largest entries of each task vector by magnitude, this share of
            each tensor (as the trim of TIES does, Yadav et al. 2023, section 4); None keeps all.

    Returns:
        - cosine <tau_i, tau_j> / (||tau_i|| ||tau_j||), None where a task vector is zero;
        - norm ||tau_t|| and ||tau_t|| / ||theta_0||, per layer;
        - sign conflict: the share of entries that are positive in one task vector and negative in another (a zero is
          on no side), per layer, for the whole model, and for each pair among the entries that both change.

        Layers come from tensor names (:func:`layers_of`). Integer and boolean tensors are not counted.

    Raises:
        CheckpointError: a tensor is missing, left over, of another shape or not finite; names it and the model.
    """
    if density is not None and not 0 < density <= 1:
        raise CheckpointError(f"density must be above 0 and at most 1, found {density}.")
    names = tuple(experts)
    if not names:
        raise CheckpointError("Geometry needs at least one expert besides the base.")
    for name, expert in experts.items():
        _same_names(base, expert, name)
    place = layers_of(base)
    sums: dict[str, _Sums] = {}
    for done, (tensor_name, layer) in enumerate(place.items()):
        if stop is not None:
            stop.check()
        origin = base[tensor_name]
        if origin.is_floating_point() and origin.numel():
            rows = [_fitting(expert, tensor_name, origin, name) for name, expert in experts.items()]
            _add(sums.setdefault(layer, _Sums(len(names))), origin, rows, deltas, density)
            _check_finite(sums[layer], tensor_name, origin, rows, names)
        report(progress, done + 1, len(place), "Comparing task vectors")
    return _tables(names, sums)


def _add(sums: _Sums, origin: Tensor, rows: list[Tensor], deltas: bool, density: float | None) -> None:
    """One tensor's share of a layer's sums."""
    floors = _floors(origin, rows, deltas, density)
    for start, differences in _differences(origin, rows, deltas):
        part = origin.reshape(-1)[start : start + differences.shape[1]].float()
        sums.gram += (differences @ differences.T).double()
        sums.base += float(part @ part)
        signs = differences.sign()
        if floors is not None:
            signs *= differences.abs() >= floors.unsqueeze(1)
        changed = signs.abs()
        product, both = (signs @ signs.T).double(), (changed @ changed.T).double()
        sums.both += both
        sums.opposed += (both - product) / 2
        count = changed.sum(0)
        sums.conflicts += int((count > signs.sum(0).abs()).sum())
        sums.touched += int((count > 1).sum())
        sums.entries += differences.shape[1]


def _differences(origin: Tensor, rows: list[Tensor], deltas: bool) -> Iterator[tuple[int, Tensor]]:
    """float32 [models, up to CHUNK] of task vectors, with the place where the chunk starts."""
    flat, others = origin.reshape(-1), [row.reshape(-1) for row in rows]
    for start in range(0, flat.numel(), CHUNK):
        part = torch.stack([other[start : start + CHUNK].float() for other in others])
        if not deltas:
            part -= flat[start : start + CHUNK].float()
        yield start, part


def _floors(origin: Tensor, rows: list[Tensor], deltas: bool, density: float | None) -> Tensor | None:
    """The smallest magnitude that each model keeps in this tensor."""
    if density is None or density == 1:
        return None
    keep = max(1, math.ceil(density * origin.numel()))
    floors = []
    for row in rows:
        magnitude = (row.float() if deltas else row.float() - origin.float()).abs().reshape(-1)
        floors.append(magnitude.kthvalue(magnitude.numel() - keep + 1).values)
    return torch.stack(floors)


def _same_names(base: Mapping[str, Tensor], expert: Mapping[str, Tensor], name: str) -> None:
    missing, extra = [n for n in base if n not in expert], [n for n in expert if n not in base]
    if missing or extra:
        what = f"has no tensor {missing[0]!r}" if missing else f"has a tensor {extra[0]!r} that the base has not"
        count = len(missing) + len(extra)
        more = f" ({count} such tensors)" if count > 1 else ""
        raise CheckpointError(f"{name} {what}{more}, so they have no task vector. Choose experts of the same base.")


def _fitting(expert: Mapping[str, Tensor], tensor_name: str, origin: Tensor, name: str) -> Tensor:
    tensor = expert[tensor_name]
    if tensor.shape != origin.shape or not tensor.is_floating_point():
        raise CheckpointError(
            f"{name}: tensor {tensor_name!r} is {tensor.dtype} {list(tensor.shape)}, the base has "
            f"{origin.dtype} {list(origin.shape)}. Choose experts of the same base."
        )
    return tensor.to(origin.device)


def _check_finite(sums: _Sums, tensor_name: str, origin: Tensor, rows: list[Tensor], names: tuple[str, ...]) -> None:
    if math.isfinite(sums.base) and bool(sums.gram.isfinite().all()):
        return
    guilty = [n for n, t in zip(("the base", *names), (origin, *rows), strict=True) if not bool(t.isfinite().all())]
    what = f"holds NaN or infinity in {', '.join(guilty)}" if guilty else "has entries too large to square in float32"
    raise CheckpointError(f"The tensor {tensor_name!r} {what}, so it has no geometry. Use another checkpoint.")


def _tables(names: tuple[str, ...], by_layer: Mapping[str, _Sums]) -> Geometry:
    layers = tuple(by_layer)
    whole = _Sums(len(names))
    for sums in by_layer.values():
        whole = whole + sums
    everything = list(by_layer.values())
    norms = [_norms(sums) for sums in everything]
    base_norms = [math.sqrt(sums.base) for sums in everything]
    return Geometry(
        CosineTable(names, layers, _cosines(whole), tuple(_cosines(sums) for sums in everything)),
        NormTable(
            names,
            layers,
            base=tuple(base_norms),
            norms=tuple(tuple(row[i] for row in norms) for i in range(len(names))),
            relative=tuple(
                tuple(_ratio(row[i], b) for row, b in zip(norms, base_norms, strict=True)) for i in range(len(names))
            ),
            whole=_norms(whole),
            whole_relative=tuple(_ratio(n, math.sqrt(whole.base)) for n in _norms(whole)),
        ),
        ConflictTable(
            names,
            layers,
            rates=tuple(_ratio(sums.conflicts, sums.entries) for sums in everything),
            touched=tuple(_ratio(sums.touched, sums.entries) for sums in everything),
            entries=tuple(sums.entries for sums in everything),
            whole=_ratio(whole.conflicts, whole.entries),
            pairs=_shares(whole),
        ),
    )


def _norms(sums: _Sums) -> tuple[float, ...]:
    return tuple(float(v) for v in sums.gram.diagonal().clamp(min=0).sqrt())


def _cosines(sums: _Sums) -> Matrix:
    norms = _norms(sums)
    table: list[list[float | None]] = [[None] * len(norms) for _ in norms]
    for i, a in enumerate(norms):
        for j, b in enumerate(norms):
            if a > 0 and b > 0:
                table[i][j] = 1.0 if i == j else max(-1.0, min(1.0, float(sums.gram[i, j]) / (a * b)))
    return tuple(tuple(row) for row in table)


def _shares(sums: _Sums) -> Matrix:
    count = len(sums.both)
    return tuple(
        tuple(_ratio(float(sums.opposed[i, j]), float(sums.both[i, j])) for j in range(count)) for i in range(count)
    )


def _ratio(part: Any, whole: Any) -> float | None:
    return float(part) / float(whole) if whole else None
