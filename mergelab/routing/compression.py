"""How much of an expert's exclusive part is kept, and in which form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from ..errors import RoutingError, suggest

KINDS = ("svd", "magnitude", "bernoulli", "none")
EMBEDDINGS = ("svd", "dense", "skip")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Compression:
    """What is kept of each matrix of an exclusive part (Lu et al. 2024, section 3.2).

    kind: ``svd`` keeps leading singular directions, as many as exactly one of ``rank`` (a number for every matrix),
    ``rank_ratio`` (of the smaller side; the paper's "sparsity" p is ``rank_ratio = 1 - p``) or ``energy`` (share of the
    squared singular values) says; ``magnitude`` keeps the ``density`` largest entries; ``bernoulli`` keeps each entry
    with that probability and divides it by it (DARE); ``none`` keeps everything.
    embeddings: tables of tokens, positions and the class token's kin: like any matrix, whole, or not at all.
    biases: whether biases take part. Vectors are never compressed.
    dtype: what is stored, after all arithmetic in float32; None: as the shared model's tensor is.
    exact: full singular value decompositions even where a few directions could be found sooner.
    """

    kind: str = "svd"
    rank: int | None = None
    rank_ratio: float | None = None
    energy: float | None = None
    density: float | None = None
    embeddings: str = "svd"
    biases: bool = True
    dtype: str | None = None
    exact: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        _among("kind", self.kind, KINDS)
        _among("embeddings", self.embeddings, EMBEDDINGS)
        if self.dtype is not None:
            _among("dtype", self.dtype, DTYPES)
        for name in ("biases", "exact"):
            if not isinstance(getattr(self, name), bool):
                raise RoutingError(f"{name!r} must be true or false, not {getattr(self, name)!r}.")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise RoutingError(f"The seed must be a whole number from 0, not {self.seed!r}.")
        sizes = {n: getattr(self, n) for n in ("rank", "rank_ratio", "energy") if getattr(self, n) is not None}
        if self.kind != "svd" and sizes:
            raise RoutingError(f"{next(iter(sizes))!r} is of the kind 'svd'; {self.kind!r} takes 'density'.")
        if self.kind == "svd" and len(sizes) != 1:
            said = " and ".join(sizes) or "none of them"
            raise RoutingError(f"Say exactly one of rank, rank_ratio and energy for the kind 'svd'; found {said}.")
        if self.rank is not None and (isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 0):
            raise RoutingError(
                f"The rank must be a whole number from 0 (0: the shared model alone), not {self.rank!r}."
            )
        for name in ("rank_ratio", "energy"):
            if name in sizes:
                _share(name, sizes[name])
        if self.kind in ("magnitude", "bernoulli"):
            _share("density", self.density)
        elif self.density is not None:
            raise RoutingError(f"'density' is for the kinds magnitude and bernoulli, not for {self.kind!r}.")

    def rank_of(self, rows: int, columns: int) -> int:
        """The rank that ``rank`` or ``rank_ratio`` means for a matrix: at most its smaller side, and at least 1 unless
        rank 0 was asked for. The small addend makes 0.1·10 the whole number that it is on paper."""
        smaller = min(rows, columns)
        if self.rank is not None:
            return min(self.rank, smaller)
        assert self.rank_ratio is not None
        return max(1, min(smaller, math.floor(self.rank_ratio * smaller + 1e-9)))

    def to_dict(self) -> dict[str, Any]:
        """Only what differs from the defaults, and the kind."""
        default = {f.name: f.default for f in fields(self)}
        return {k: v for k, v in asdict(self).items() if k == "kind" or v != default[k]}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any], where: str = "exclusive") -> Compression:
        """From a recipe's or a folder's words; an unknown word is an error with a suggestion."""
        known = [f.name for f in fields(cls)]
        for key in given:
            if key not in known:
                raise RoutingError(f"{where}: {str(key)[:60]!r} is not known.{suggest(str(key), known)}")
        try:
            return cls(**given)
        except RoutingError as error:
            raise RoutingError(f"{where}: {error}") from None


def _among(name: str, value: Any, allowed: Any) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise RoutingError(f"{name!r} must be one of {', '.join(allowed)}, not {str(value)[:40]!r}.")


def _share(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise RoutingError(f"{name!r} must be above 0 and at most 1, not {str(value)[:40]!r}.")
