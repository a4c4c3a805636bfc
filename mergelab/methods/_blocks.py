"""What the matching methods share around their systems: parameters, blocks as systems, leftovers, the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import MethodError
from ._kernels import inner, weighted_sum
from ._matching import Diagonal, Full, Gram, Identity, Kfac, System
from .context import Context
from .declaration import Parameter, Resolved

if TYPE_CHECKING:
    from ..statistics import Block

#: Objective -> the kind of statistics that it reads.
OBJECTIVES: Mapping[str, tuple[str, ...]] = {
    "kfac": ("kfac",), "gram": ("gram",), "diag": ("diag",), "block": ("block",), "identity": (),
}  # fmt: skip
#: Why a tensor has no statistics, when nothing better is known.
LACKS = {
    "kfac": "no K-FAC factors: not the weight of a linear layer that was seen with gradients",
    "gram": "no Gram matrix: not the weight of a linear layer",
    "diag": "no diagonal Fisher",
    "block": "no full Fisher block: only small vectors have one",
}

TASK_WEIGHT = Parameter(
    "weight", "float", 1.0, (0.0, 1e6), per_model=True, step=0.05, slider=(0.0, 2.0),
    help="How much this task's statistics count; the paper and its code use 1.",
)  # fmt: skip
NORMALIZE = Parameter(
    "normalize", "choice", "none", ("none", "trace"),
    help="Leave each task its scale (the paper), or divide its output factor or Fisher by its mean diagonal, so that "
    "tasks with large losses or short targets do not outvote the others.",
)  # fmt: skip
FLOOR_HELP = "Smallest value that a task's Fisher may have, absolute; the paper's code uses 1e-8 for Fisher merging."
FLOOR_RELATIVE = Parameter(
    "floor_relative", "float", 0.0, (0.0, 1.0), slider=(0.0, 1e-2),
    help="The same floor as a share of each task's mean Fisher; the larger of both counts.",
)  # fmt: skip


def off_diagonal(default: float) -> Parameter:
    """RegMean's α."""
    return Parameter(
        "off_diagonal", "float", default, (0.0, 1.0), step=0.05,
        help="Scales the off-diagonal entries of A and G: 1 keeps the full statistics, 0 their diagonal only.",
    )  # fmt: skip


def ridge(default: float) -> Parameter:
    """The smallest ridge of a direct solve."""
    return Parameter(
        "ridge", "float", default, (0.0, 1.0), slider=(0.0, 1e-2),
        help="Ridge of direct solves, relative to the mean diagonal; raised where a matrix has not full rank.",
    )  # fmt: skip


LEFTOVER = Parameter(
    "leftover", "choice", "average", ("average", "init", "fisher"),
    help="What tensors without such statistics become: the mean of the models (the paper's code), the init's values, "
    "or merged by their diagonal Fisher where there is one.",
)  # fmt: skip
BIAS = Parameter(
    "bias", "choice", "leftover", ("leftover", "augment"),
    help="What the bias of a solved layer becomes: a leftover like other tensors (the papers), or solved for with its "
    "weight, as the weight of one more input that is always 1.",
)  # fmt: skip


def check_weights(values: Resolved, name: str) -> None:
    """Raise MethodError where no task counts."""
    if not any(values["weight"]):
        raise MethodError(f"Every 'weight' of {name!r} is 0, so no task counts; give at least one model more than 0.")


def with_leftovers(kinds: tuple[str, ...], values: Resolved) -> tuple[str, ...]:
    """The kinds needed, with the diagonal where leftovers are merged by it."""
    return tuple(dict.fromkeys((*kinds, *(("diag",) if values.get("leftover") == "fisher" else ()))))


@dataclass
class Work:
    """One tensor's merge: what goes in, and what is written down about it. ``start`` is the point it starts from."""

    base: Tensor | None
    experts: Sequence[Tensor]
    weights: Sequence[float]
    context: Context

    def __post_init__(self) -> None:
        self.mean = weighted_mean(self.experts, self.weights)
        self.start = self.mean if self.context.start is None else self.context.start

    @property
    def equal(self) -> bool:
        """Whether all models that count are the same here."""
        counted = [expert for expert, weight in zip(self.experts, self.weights, strict=True) if weight]
        return all(torch.equal(counted[0], other) for other in counted[1:])

    def same(self) -> Tensor:
        """The experts' common value, said so in the log."""
        self.log(by="experts", stopped="experts equal", out=None)
        return next(expert for expert, weight in zip(self.experts, self.weights, strict=True) if weight)

    def blocks(self, kind: str) -> list[Block] | None:
        """Every model's statistics of this kind, or None where one of them lacks it."""
        found = list(self.context.statistics)
        if len(found) != len(self.experts):
            return None
        return found if all(block is not None and kind in block.kinds for block in found) else None  # type: ignore[return-value]

    def leave(self, leftover: str, why: str) -> Tensor:
        """The tensor merged without the method's system."""
        if leftover == "fisher" and (blocks := self.blocks("diag")) is not None:
            out, _ = fisher(self, blocks, floor=1e-8, relative=0.0, normalize="none")
            self.log(by="fisher", why=why, out=out)
            return out
        out = self.start if leftover == "init" else self.mean
        self.log(by="init" if leftover == "init" and self.context.start is not None else "average", why=why, out=out)
        return out

    def log(self, *, by: str, out: Tensor | None, why: str = "", stopped: str = "", **more: Any) -> None:
        """Write one entry: who merged the tensor (``by``), why not the system (``why``), how far it moved."""
        if self.context.log is None:
            return
        moved = 0.0 if out is None else _distance(out, self.start)
        anchor = self.mean if self.base is None else self.base
        far = sum(_distance(expert, anchor) for expert in self.experts) / len(self.experts)
        entry = {
            "tensor": self.context.name, "shape": list(self.start.shape), "by": by, "why": why, "stopped": stopped,
            "moved": moved, "task_vector": far, "change": moved / far if far else 0.0,
        }  # fmt: skip
        self.context.log({**entry, **more})


def _distance(a: Tensor, b: Tensor) -> float:
    return 0.0 if a is b else float(torch.linalg.vector_norm(a - b))


def weighted_mean(experts: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ w θ / Σ w."""
    total = sum(weights)
    return weighted_sum(experts, [weight / total for weight in weights], like=experts[0])


# ---- tensors as matrices, blocks as systems ----


def matrices(tensor: Tensor, layout: str, parts: int) -> list[Tensor]:
    """A contiguous tensor's ``parts`` equal slices of outputs as matrices that share its memory."""
    if layout == "conv1d":
        return list(tensor.chunk(parts, dim=1)) if parts > 1 else [tensor]
    flat = tensor.flatten(1)
    return list(flat.chunk(parts)) if parts > 1 else [flat]


def split(work: Work, objective: str, blocks: Sequence[Block]) -> tuple[str, int]:
    """(layout, parts) in which a tensor is solved: only K-FAC has a factor for each slice."""
    if objective not in ("kfac", "gram"):
        return "", 1
    parts = 1
    if objective == "kfac":
        parts = len(outputs(blocks[0]))
        if any(len(outputs(block)) != parts for block in blocks):
            counts = ", ".join(str(len(outputs(block))) for block in blocks)
            raise MethodError(
                f"The statistics of tensor {work.context.name!r} have output factors of {counts} parts; "
                "collect them again in one way for all models."
            )
    return blocks[0].layout, parts


def outputs(block: Block) -> Tensor:
    """G [parts, p, p] of a block that has it."""
    assert block.outputs is not None
    return block.outputs


def system(
    objective: str,
    blocks: Sequence[Block],
    weights: Sequence[float],
    like: Tensor,
    *,
    part: int = 0,
    alpha: float = 1.0,
    normalize: str = "none",
    floor: float = 0.0,
    relative: float = 0.0,
) -> System:
    """The system of one matrix (slice ``part``) of a tensor under an objective."""
    if objective == "identity":
        return Identity(weights, like)
    if objective == "diag":
        fishers = [_piece(block.diagonal, like).reshape(like.shape) for block in blocks]
        means = [float(f.mean()) for f in fishers] if relative or normalize == "trace" else []
        floors = [max(floor, relative * means[m]) if relative else floor for m in range(len(fishers))]
        return Diagonal(_scaled(weights, means, normalize), fishers, floors)
    if objective == "block":
        full = [_piece(block.full, like) for block in blocks]
        return Full(_scaled(weights, [float(c.diagonal().mean()) for c in full], normalize), full)
    grams = [_piece(block.inputs, like) for block in blocks]
    left = blocks[0].layout == "conv1d"
    if objective == "gram":
        return Gram(weights, grams, left=left, alpha=alpha)
    sides = [_piece(outputs(block)[part], like) for block in blocks]
    factors = _scaled(weights, [float(g.diagonal().mean()) for g in sides], normalize)
    return Kfac(factors, *((grams, sides) if left else (sides, grams)), alpha=alpha)


def _piece(tensor: Tensor | None, like: Tensor) -> Tensor:
    assert tensor is not None
    return tensor.to(dtype=like.dtype, device=like.device)


def _scaled(weights: Sequence[float], means: Sequence[float], normalize: str) -> list[float]:
    """Task weights over mean diagonals; a task without information (mean 0) keeps its weight."""
    if normalize != "trace":
        return list(weights)
    return [weight / mean if mean > 0 else weight for weight, mean in zip(weights, means, strict=True)]


def fisher(
    work: Work, blocks: Sequence[Block], *, floor: float, relative: float, normalize: str
) -> tuple[Tensor, float]:
    """(Σ f F θ / Σ f F elementwise, share of Fisher values below their floor); the start where Σ f F = 0.

    Matena & Raffel (2022), equation 4; written as start + Σ f F (θ − start) / Σ f F.
    """
    made = system("diag", blocks, work.weights, work.start, floor=floor, relative=relative, normalize=normalize)
    right = made.pull(work.experts, work.start)
    total = made.diagonal()
    delta = torch.where(total > 0, right / total, torch.zeros_like(right))
    floored = 0.0
    if floor or relative:
        for block in blocks:
            values = _piece(block.diagonal, work.start)
            limit = max(floor, relative * float(values.mean()))
            floored += float((values < limit).sum()) / max(1, values.numel()) / len(blocks)
    return work.start + delta, floored


def norm(tensor: Tensor) -> float:
    """‖·‖, accumulated in float64."""
    return inner(tensor, tensor) ** 0.5
