"""The positive semi-definite operators C_m of the matching methods, on tensors as they are stored.

None of them is multiplied out. A weight W of a linear layer is stored as [out, in] (``left`` of W is the side of the
outputs) or, in GPT-2's Conv1D, as [in, out]; C_m W is G_m W A_m for the first and A_m W G_m for the second, which is
the Kronecker product A_m ⊗ G_m on the entries of W (MaTS, Tam et al., 2024, section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import MethodError
from ._kernels import inner

#: Ridges, relative to the mean diagonal, that make a matrix fit for a Cholesky factorisation.
RIDGES = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4)


class System:
    """Σ_m f_m C_m + damping · I. ``factors`` f_m: task weights, with the trace normalisation in them."""

    def __init__(self, factors: Sequence[float]) -> None:
        self.factors = list(factors)
        self.damping = 0.0

    def add(self, m: int, v: Tensor, out: Tensor) -> Tensor:
        """``out`` += f_m C_m v."""
        raise NotImplementedError

    def total(self, v: Tensor, out: Tensor) -> Tensor:
        """``out`` = Σ f_m C_m v; subclasses whose C_m can be summed first do so."""
        out.zero_()
        for m in range(len(self.factors)):
            self.add(m, v, out)
        return out

    def apply(self, v: Tensor, out: Tensor) -> Tensor:
        """``out`` = (Σ f_m C_m + damping) v."""
        self.total(v, out)
        return out.add_(v, alpha=self.damping) if self.damping else out

    def diagonal(self) -> Tensor:
        """The diagonal of Σ f_m C_m, as a tensor that broadcasts to v."""
        raise NotImplementedError

    def bound(self, m: int) -> float:
        """At least the largest eigenvalue of f_m C_m."""
        raise NotImplementedError

    def mean_diagonal(self) -> float:
        return float(self.diagonal().mean(dtype=_wide(self.diagonal())))

    def damp(self, relative: float) -> None:
        """Tikhonov term anchored at the start, relative to the mean diagonal (our extension)."""
        self.damping = relative * self.mean_diagonal() if relative else 0.0

    def pull(self, experts: Sequence[Tensor], start: Tensor) -> Tensor:
        """b = Σ f_m C_m (θ_m − start)."""
        b, d = torch.zeros_like(start), torch.empty_like(start)
        for m, expert in enumerate(experts):
            if self.factors[m]:
                self.add(m, torch.sub(expert, start, out=d), b)
        return b

    def right(self, experts: Sequence[Tensor], start: Tensor) -> tuple[Tensor, float, float]:
        """(b = Σ f_m C_m d_m, Σ f_m d_mᵀ C_m d_m, Σ ‖f_m C_m d_m‖) with d_m = θ_m − start."""
        b, part, d = torch.zeros_like(start), torch.empty_like(start), torch.empty_like(start)
        energy = pulls = 0.0
        for m, expert in enumerate(experts):
            if self.factors[m]:
                torch.sub(expert, start, out=d)
                self.add(m, d, part.zero_())
                energy += inner(d, part)
                pulls += inner(part, part) ** 0.5
                b.add_(part)
        return b, energy, pulls


class Identity(System):
    """C_m = I: the weighted mean."""

    def __init__(self, factors: Sequence[float], like: Tensor) -> None:
        super().__init__(factors)
        self._one = torch.ones((), dtype=like.dtype, device=like.device)

    def add(self, m: int, v: Tensor, out: Tensor) -> Tensor:
        return out.add_(v, alpha=self.factors[m])

    def total(self, v: Tensor, out: Tensor) -> Tensor:
        return torch.mul(v, sum(self.factors), out=out)

    def diagonal(self) -> Tensor:
        return self._one * sum(self.factors)

    def bound(self, m: int) -> float:
        return self.factors[m]


class Diagonal(System):
    """C_m = diag(F_m), each F_m at least its ``floors[m]``."""

    def __init__(self, factors: Sequence[float], fishers: Sequence[Tensor], floors: Sequence[float]) -> None:
        super().__init__(factors)
        self._fishers, self._floors = list(fishers), list(floors)
        self._sum = torch.zeros_like(fishers[0])
        for m, factor in enumerate(self.factors):
            if factor:
                self._sum.add_(self._fisher(m), alpha=factor)

    def _fisher(self, m: int) -> Tensor:
        return self._fishers[m].clamp(min=self._floors[m]) if self._floors[m] else self._fishers[m]

    def add(self, m: int, v: Tensor, out: Tensor) -> Tensor:
        return out.addcmul_(self._fisher(m), v, value=self.factors[m])

    def total(self, v: Tensor, out: Tensor) -> Tensor:
        return torch.mul(self._sum, v, out=out)

    def diagonal(self) -> Tensor:
        return self._sum

    def bound(self, m: int) -> float:
        return self.factors[m] * max(float(self._fishers[m].max()), self._floors[m])


class Gram(System):
    """C_m = A_m ⊗ I with off-diagonal entries scaled by α: RegMean's objective. The sum over models is made once."""

    def __init__(self, factors: Sequence[float], grams: Sequence[Tensor], *, left: bool, alpha: float = 1.0) -> None:
        super().__init__(factors)
        self._grams, self.left, self._alpha = list(grams), left, alpha
        self._scratch: Tensor | None = None
        self.sum = torch.zeros_like(grams[0])
        for gram, factor in zip(grams, self.factors, strict=True):
            if factor:
                self.sum.add_(gram, alpha=factor)
        if alpha != 1:
            kept = self.sum.diagonal().clone()
            self.sum.mul_(alpha)
            self.sum.diagonal().copy_(kept)

    def add(self, m: int, v: Tensor, out: Tensor) -> Tensor:
        factor, gram, alpha = self.factors[m], self._grams[m], self._alpha
        if alpha != 1 and gram.numel() < v.numel():  # the smaller of the two is scaled
            self._scratch = torch.mul(
                gram, alpha, out=torch.empty_like(gram) if self._scratch is None else self._scratch
            )
            self._scratch.diagonal().copy_(gram.diagonal())
            gram, alpha = self._scratch, 1.0
        out.addmm_(*((gram, v) if self.left else (v, gram)), alpha=factor * alpha)
        if alpha != 1:
            out.addcmul_(v, _along(gram.diagonal(), self.left), value=factor * (1 - alpha))
        return out

    def total(self, v: Tensor, out: Tensor) -> Tensor:
        return torch.mm(self.sum, v, out=out) if self.left else torch.mm(v, self.sum, out=out)

    def diagonal(self) -> Tensor:
        return _along(self.sum.diagonal(), self.left)

    def bound(self, m: int) -> float:
        return self.factors[m] * _norm(self._grams[m])


class Kfac(System):
    """C_m = left_m ⊗ right_m: v ↦ left_m v right_m, off-diagonal entries of both scaled by α.

    Two products a model, the second summed into ``out`` by the product itself, so that nothing is copied or stacked.
    """

    def __init__(
        self, factors: Sequence[float], lefts: Sequence[Tensor], rights: Sequence[Tensor], alpha: float = 1.0
    ) -> None:
        super().__init__(factors)
        self.lefts, self.rights, self._alpha = list(lefts), list(rights), alpha
        self._work: Tensor | None = None

    def add(self, m: int, v: Tensor, out: Tensor) -> Tensor:
        factor, left, right, alpha = self.factors[m], self.lefts[m], self.rights[m], self._alpha
        if not factor:
            return out
        if self._work is None:
            self._work = torch.empty_like(v)
        work = torch.mm(v, right, out=self._work)
        if alpha != 1:
            work.mul_(alpha).addcmul_(v, right.diagonal(), value=1 - alpha)
            out.addcmul_(left.diagonal()[:, None], work, value=factor * (1 - alpha))
        return out.addmm_(left, work, alpha=factor * alpha)

    def diagonal(self) -> Tensor:
        pairs = zip(self.factors, self.lefts, self.rights, strict=True)
        out = torch.zeros(len(self.lefts[0]), len(self.rights[0]), dtype=self.lefts[0].dtype).to(self.lefts[0].device)
        for factor, left, right in pairs:
            out.addr_(left.diagonal(), right.diagonal(), alpha=factor)
        return out

    def mean_diagonal(self) -> float:
        pairs = zip(self.factors, self.lefts, self.rights, strict=True)
        return sum(f * float(left.diagonal().mean()) * float(right.diagonal().mean()) for f, left, right in pairs)

    def bound(self, m: int) -> float:
        return self.factors[m] * _norm(self.lefts[m]) * _norm(self.rights[m])


class Full(System):
    """C_m [n, n] of a small tensor's entries; summed once."""

    def __init__(self, factors: Sequence[float], matrices: Sequence[Tensor]) -> None:
        super().__init__(factors)
        self._matrices = list(matrices)
        self.sum = torch.zeros_like(matrices[0])
        for matrix, factor in zip(matrices, self.factors, strict=True):
            if factor:
                self.sum.add_(matrix, alpha=factor)

    def add(self, m: int, v: Tensor, out: Tensor) -> Tensor:
        out.view(-1).addmv_(self._matrices[m], v.view(-1), alpha=self.factors[m])
        return out

    def total(self, v: Tensor, out: Tensor) -> Tensor:
        torch.mv(self.sum, v.view(-1), out=out.view(-1))
        return out

    def diagonal(self) -> Tensor:
        return self.sum.diagonal()

    def bound(self, m: int) -> float:
        return self.factors[m] * _norm(self._matrices[m])


def jacobi(system: System) -> Callable[[Tensor], Tensor]:
    """Divides by the diagonal of the system; entries that it does not see stay 0."""
    diagonal = system.diagonal() + system.damping
    inverse = torch.where(diagonal > 0, 1 / diagonal, torch.zeros_like(diagonal))
    return lambda r: r * inverse


def kronecker_mean(system: System, ridge: float) -> Callable[[Tensor], Tensor]:
    """r ↦ (mean left)⁻¹ r (mean right)⁻¹, each with a ridge relative to its mean diagonal; for K-FAC and Gram."""
    if isinstance(system, Gram):
        inverse = _inverse(system.sum, ridge)
        return (lambda r: inverse @ r) if system.left else (lambda r: r @ inverse)
    if not isinstance(system, Kfac):
        raise MethodError("Preconditioner 'kronecker' needs objective 'kfac' or 'gram'; choose 'jacobi' or 'none'.")
    left = _inverse(_mean(system.lefts, system.factors), ridge)
    right = _inverse(_mean(system.rights, [float(factor > 0) for factor in system.factors]), ridge)
    return lambda r: left @ r @ right


def _mean(matrices: Sequence[Tensor], factors: Sequence[float]) -> Tensor:
    total = torch.zeros_like(matrices[0])
    for matrix, factor in zip(matrices, factors, strict=True):
        total.add_(matrix, alpha=factor / len(factors))
    return total


def _inverse(matrix: Tensor, ridge: float) -> Tensor:
    """The inverse of a PSD matrix with the smallest ridge, from ``ridge`` up, that makes it one."""
    scale = float(matrix.diagonal().mean())
    tried = [ridge, *(value for value in RIDGES if value > ridge), 1e-3, 1e-2]
    for value in tried:
        raised = matrix.clone()
        raised.diagonal().add_(value * scale)
        factor, info = torch.linalg.cholesky_ex(raised)
        if not int(info):
            return torch.cholesky_inverse(factor)
    return torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)


def _along(diagonal: Tensor, left: bool) -> Tensor:
    """A diagonal of the inputs' side, to be multiplied with a weight."""
    return diagonal[:, None] if left else diagonal


def _norm(matrix: Tensor) -> float:
    return float(torch.linalg.vector_norm(matrix))


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64
