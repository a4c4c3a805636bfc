"""What statistics must be, and the sentences about those that are not."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from ..errors import StatisticsError
from .block import LAYOUTS, Block, inputs_of, outputs_of

if TYPE_CHECKING:
    from torch import Tensor

#: |A - Aᵀ| may be this much of the largest |A|: rounding of a float32 accumulation, not a wrong matrix.
SYMMETRY = 1e-4
_TILE = 256
_NAMES = {
    "inputs": "the Gram matrix A",
    "outputs": "the output factor G",
    "diagonal": "the diagonal Fisher",
    "full": "the full block",
    "mean": "the mean input",
}
_AGAIN = "collect the statistics again"


def check_block(block: Block, name: str, where: str, shape: tuple[int, ...] | None = None) -> Block:
    """The block with every matrix exactly symmetric, at least float32. ``shape``: the tensor's in the model.

    Raises StatisticsError in one sentence that names ``where`` (a file or a task), the tensor and both values: sizes
    that do not fit the tensor, no symmetry (beyond 1e-4 of the largest entry), a negative diagonal, NaN or infinity,
    no rows or examples behind it.
    """
    who = f"{where}, tensor {name!r}"
    check_shape(block.shape, shape, who)
    check_sizes({key: tuple(t.shape) for key, t in block.tensors.items()}, block.layout, shape or block.shape, who)
    check_counts(block.tensors, block.rows, block.examples, who)
    made = {key: _checked(key, tensor, f"{who}: {_NAMES[key]}") for key, tensor in block.tensors.items()}
    return block.with_tensors(made)


def check_shape(noted: tuple[int, ...] | None, shape: tuple[int, ...] | None, who: str) -> None:
    """Whether the shape that the collector noted is the tensor's, where both are known."""
    if shape is not None and noted is not None and tuple(shape) != tuple(noted):
        raise StatisticsError(
            f"{who}: the statistics were collected for the shape {list(noted)} and the model's tensor has "
            f"{list(shape)}; {_AGAIN} from this model."
        )


def check_counts(pieces: Collection[str], rows: int, examples: int, who: str) -> None:
    """At least one row behind A and G, one example behind a Fisher."""
    for key in pieces:
        count, what = (rows, "rows") if key in ("inputs", "outputs", "mean") else (examples, "examples")
        if count < 1:
            raise StatisticsError(
                f"{who}: {_NAMES[key]} was averaged over {count} {what}, at least 1 is needed; {_AGAIN}."
            )


def check_sizes(pieces: Mapping[str, tuple[int, ...]], layout: str, shape: tuple[int, ...] | None, who: str) -> None:
    """Whether the pieces of a block fit each other and the tensor (whose ``shape`` may be unknown)."""
    if layout not in LAYOUTS:
        raise StatisticsError(f"{who}: the layout is {layout!r}; expected one of {', '.join(map(repr, LAYOUTS))}.")
    factors = [key for key in ("inputs", "outputs", "mean") if key in pieces]
    if factors and not layout:
        raise StatisticsError(f"{who}: {_NAMES[factors[0]]} needs a layer's layout, and none is noted; {_AGAIN}.")
    shape = shape if shape is not None else pieces.get("diagonal")
    if factors and shape is not None and (len(shape) != 2 if layout != "conv" else len(shape) < 3):
        raise StatisticsError(f"{who}: a tensor of shape {list(shape)} is no {layout} weight; {_AGAIN}.")
    wide = inputs_of(shape, layout) if factors and shape is not None else None
    if "inputs" in pieces:
        wide = _square(pieces["inputs"], wide, f"{who}: {_NAMES['inputs']}", "in")
    if "mean" in pieces and pieces["mean"] != (wide,) and wide is not None:
        raise _misfit(f"{who}: {_NAMES['mean']}", pieces["mean"], (wide,))
    if "outputs" in pieces:
        _parts(pieces["outputs"], outputs_of(shape, layout) if shape is not None else None, who)
    if "diagonal" in pieces and shape is not None and pieces["diagonal"] != tuple(shape):
        raise _misfit(f"{who}: {_NAMES['diagonal']}", pieces["diagonal"], tuple(shape))
    if "full" in pieces:
        _square(pieces["full"], math.prod(shape) if shape is not None else None, f"{who}: {_NAMES['full']}", "n")


def _square(found: tuple[int, ...], size: int | None, what: str, letter: str) -> int:
    if len(found) != 2 or found[0] != found[1] or found[0] < 1 or (size is not None and found[0] != size):
        expected = (size, size) if size is not None else f"[{letter}, {letter}]"
        raise _misfit(what, found, expected)
    return found[0]


def _parts(found: tuple[int, ...], out: int | None, who: str) -> None:
    good = len(found) == 3 and found[1] == found[2] and found[0] >= 1 and found[1] >= 1
    if not good or (out is not None and found[0] * found[1] != out):
        expected = "[parts, out/parts, out/parts]" + (f" with out = {out}" if out is not None else "")
        raise _misfit(f"{who}: {_NAMES['outputs']}", found, expected)


def _misfit(what: str, found: tuple[int, ...], expected: object) -> StatisticsError:
    words = list(expected) if isinstance(expected, tuple) else expected
    return StatisticsError(f"{what} has the shape {list(found)}, expected {words}; {_AGAIN} from this model.")


def _checked(key: str, tensor: Tensor, what: str) -> Tensor:
    import torch

    if not tensor.is_floating_point():
        raise StatisticsError(f"{what} is stored as {str(tensor.dtype).removeprefix('torch.')}, not as real numbers.")
    tensor = tensor.detach()
    if tensor.dtype not in (torch.float32, torch.float64):
        tensor = tensor.float()
    if not tensor.numel():
        return tensor
    largest = _largest(tensor)
    if not math.isfinite(largest):
        bad = tensor.numel() - int(tensor.isfinite().sum())
        raise StatisticsError(
            f"{what} has {bad:,} of {tensor.numel():,} values that are NaN or infinite; look for a model that "
            f"overflows, and {_AGAIN}."
        )
    if key == "mean":
        return tensor
    diagonal = tensor if key == "diagonal" else tensor.diagonal(dim1=-2, dim2=-1)
    lowest = float(diagonal.min())
    if lowest < 0:
        raise StatisticsError(
            f"{what} has {lowest:.3g} on its diagonal, where squares are averaged and nothing is below 0; {_AGAIN}."
        )
    return tensor if key == "diagonal" else _symmetric(tensor, largest, what)


def _symmetric(matrices: Tensor, largest: float, what: str) -> Tensor:
    gap = max(_gap(matrix) for matrix in (matrices if matrices.ndim == 3 else matrices[None]))
    if gap == 0:
        return matrices
    if gap > SYMMETRY * largest:
        raise StatisticsError(
            f"{what} is not symmetric: entries that should be equal differ by {gap:.3g}, more than {SYMMETRY:g} of "
            f"its largest entry {largest:.3g}; {_AGAIN}."
        )
    return (matrices + matrices.mT) / 2


def _gap(matrix: Tensor) -> float:
    """max |A - Aᵀ|, tile by tile: a transposed matrix as a whole is read against the grain of the cache."""
    gap = 0.0
    for i in range(0, len(matrix), _TILE):
        for j in range(i, len(matrix), _TILE):
            tile = matrix[i : i + _TILE, j : j + _TILE] - matrix[j : j + _TILE, i : i + _TILE].mT
            gap = max(gap, _largest(tile))
    return gap


def _largest(tensor: Tensor) -> float:
    """max |x| in one pass; NaN wins over every number."""
    low, high = (float(end) for end in tensor.aminmax())
    return low if math.isnan(low) else max(-low, high)
