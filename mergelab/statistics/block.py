"""The statistics of one tensor of one task: the C_m of the linear system that matching methods solve.

Matching methods (Tam, Bansal and Raffel, "Merging by Matching Models in Task Parameter Subspaces", TMLR 2024) weight a
task's tensor by a positive semi-definite matrix. It is kept in one of four kinds, none of which is ever multiplied out:

=========  ===========================================  ===========================================================
``diag``   ``diagonal``, shape of the tensor             (1/N) Σ (∂ log p / ∂θ)², Fisher's diagonal
``gram``   ``inputs`` A ``[in, in]``                     (1/rows) Σ x xᵀ over the layer's inputs (RegMean)
``kfac``   A and ``outputs`` G ``[parts, p, p]``         (1/rows) Σ g gᵀ over the gradients of its outputs (K-FAC)
``block``  ``full`` ``[n, n]``                           (1/N) Σ g gᵀ of the whole tensor, for small ones
=========  ===========================================  ===========================================================
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

#: The kinds of statistics, the cheaper first.
KINDS = ("diag", "gram", "kfac", "block")
#: How a tensor holds a linear map: [out, in], [in, out] (GPT-2), [out, in, kh, kw], or not at all.
LAYOUTS = ("linear", "conv1d", "conv", "")
#: What a kind consists of. The mean input goes with A.
PIECES: Mapping[str, tuple[str, ...]] = {
    "diag": ("diagonal",),
    "gram": ("inputs", "mean"),
    "kfac": ("inputs", "mean", "outputs"),
    "block": ("full",),
}
#: The piece without which a kind is not there.
_NEEDS: Mapping[str, tuple[str, ...]] = {
    "diag": ("diagonal",),
    "gram": ("inputs",),
    "kfac": ("inputs", "outputs"),
    "block": ("full",),
}
#: Every tensor that a block may have.
FIELDS = ("inputs", "outputs", "diagonal", "full", "mean")


@dataclass(frozen=True, eq=False, repr=False)
class Block:
    """Statistics of one tensor, float32 (or float64), on the CPU unless they were moved.

    ``inputs`` A ``[in, in]`` (for a convolution ``in`` counts the unfolded patch, channels x kh x kw); ``outputs`` G
    ``[parts, out/parts, out/parts]``: one part for a plain linear layer, three for a fused query-key-value projection,
    whose rows are equal slices that share A and have no cross terms, so that a fused layer gives what the unfused ones
    give; ``diagonal`` of the tensor's shape; ``full`` ``[n, n]`` over the tensor's ``n`` entries in C order; ``mean``
    ``[in]``, the mean input row.

    ``rows``: unmasked input rows (tokens) behind A and G; ``examples``: those behind ``diagonal`` and ``full``;
    ``shape``: of the tensor, where the collector noted it.
    """

    inputs: Tensor | None = None
    outputs: Tensor | None = None
    diagonal: Tensor | None = None
    full: Tensor | None = None
    mean: Tensor | None = None
    rows: int = 0
    examples: int = 0
    layout: str = ""
    shape: tuple[int, ...] | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What there is, by field name."""
        found = {name: getattr(self, name) for name in FIELDS}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that are whole here, in the order of :data:`KINDS`."""
        return kinds_in(self.tensors)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in self.tensors.items())
        return f"<Block {self.layout or 'of any tensor'}: {sizes}; {self.rows} rows, {self.examples} examples>"

    @property
    def nbytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def only(self, kinds: Collection[str]) -> Block:
        """The same block without what ``kinds`` do not need."""
        wanted = pieces_of(kinds, self.tensors)
        return self.with_tensors({name: getattr(self, name) for name in wanted})

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Block:
        """The same block on another device or in another dtype."""
        return self.with_tensors({name: t.to(device=device, dtype=dtype) for name, t in self.tensors.items()})

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Block:
        """The same counts, layout and shape with these tensors (by field name) and no others."""
        return Block(**tensors, rows=self.rows, examples=self.examples, layout=self.layout, shape=self.shape)  # type: ignore[arg-type]


def kinds_in(pieces: Collection[str]) -> tuple[str, ...]:
    """The kinds that these fields make up."""
    return tuple(kind for kind in KINDS if all(name in pieces for name in _NEEDS[kind]))


def pieces_of(kinds: Collection[str], there: Collection[str]) -> tuple[str, ...]:
    """Which of the fields that are ``there`` the ``kinds`` need; a kind that is not whole needs none."""
    whole = set(kinds_in(there)) & set(kinds)
    wanted = {name for kind in whole for name in PIECES[kind]}
    return tuple(name for name in FIELDS if name in wanted and name in there)


def inputs_of(shape: tuple[int, ...], layout: str) -> int:
    """The number of inputs ``in`` of a layer whose tensor has this shape."""
    if layout == "conv1d":
        return shape[0]
    size = 1
    for length in shape[1:]:
        size *= length
    return size


def outputs_of(shape: tuple[int, ...], layout: str) -> int:
    """The number of outputs ``out`` of a layer whose tensor has this shape."""
    return shape[1] if layout == "conv1d" else shape[0]
