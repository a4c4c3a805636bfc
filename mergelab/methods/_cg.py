"""Conjugate gradients for the matching methods' linear system, step by step.

The system is Σ w_m C_m (θ − θ_m) = 0 with the unknown δ = θ − θ_start, so (Σ w_m C_m) δ = b with b = Σ w_m C_m (θ_m −
θ_start): around absolute weights the stopping test and float32 would look at the pretrained weights that all models
share (MaTS, Tam et al., 2024, section 3; the delta form is ours). b lies in the range of the operator, so the steps
never leave it: directions that no task's statistics see keep the start.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ._kernels import inner

#: Iterations after which the residual is computed anew instead of updated: rounding errors add up in the update.
REFRESH = 50

CONVERGED, ITERATIONS, NULL = "converged", "iterations", "null direction"

Preconditioner = Callable[[Tensor], Tensor]


class Operator(Protocol):
    """Σ w_m C_m, symmetric and positive semi-definite, on matrices of one shape."""

    def apply(self, v: Tensor, out: Tensor) -> Tensor: ...


class Reference:
    """What a residual is compared with: ‖b‖ at the models' mean, which does not vanish at a start that is good already.

    It costs one more product with the operator, so it is computed only once a residual is below ``rtol`` times a
    cheap upper ``bound`` on it. Residuals up to ``rounding`` are nothing: b itself is not known better.
    """

    def __init__(self, rtol: float, bound: float, exact: Callable[[], float], rounding: float = 0.0) -> None:
        self.rtol, self.bound, self.rounding = rtol, bound, rounding
        self._exact = exact
        self._value: float | None = None

    def reached(self, residual: float) -> bool:
        """Whether the residual counts as zero."""
        if residual <= self.rounding:
            return True
        if residual > self.rtol * self.bound:
            return False
        if self._value is None:
            self._value = self._exact()
        return residual <= self.rtol * self._value


class ConjugateGradients:
    """The solution of one system, one iteration at a time.

    ``delta`` is δ after :attr:`iterations` steps; ``objective`` and ``residual`` hold J(δ) = ½ Σ w_m (δ − d_m)ᵀ C_m (δ
    − d_m) (plus ½ damping ‖δ‖²) and ‖b − Aδ‖ at every iteration, the start included. J falls with every step; the
    residual need not. ``stopped`` is empty while there is more to do, else why it ended.

    ``right`` is b, ``energy`` Σ w_m d_mᵀ C_m d_m. Dot products are summed in float64.
    """

    def __init__(
        self,
        operator: Operator,
        right: Tensor,
        energy: float,
        reference: Reference,
        precondition: Preconditioner | None = None,
    ) -> None:
        self._operator, self._right, self._energy, self._reference = operator, right, energy, reference
        self._precondition = precondition
        self.delta = torch.zeros_like(right)
        self._r = right.clone()
        z = self._r if precondition is None else precondition(self._r)
        self._p = z.clone()
        self._q = torch.empty_like(right)
        square = inner(self._r, self._r)
        self._rho = square if precondition is None else inner(self._r, z)
        self.iterations = 0
        self.stopped = ""
        self.objective = [max(0.0, energy / 2)]
        self.residual = [math.sqrt(square)]
        self._test()

    def _test(self) -> None:
        if self._reference.reached(self.residual[-1]):
            self.stopped = CONVERGED

    def step(self) -> None:
        """One iteration; nothing once it has stopped."""
        if self.stopped:
            return
        p, q, r = self._p, self._operator.apply(self._p, self._q), self._r
        curvature = inner(p, q)
        least = torch.finfo(p.dtype).eps * float(torch.linalg.vector_norm(p)) * float(torch.linalg.vector_norm(q))
        if not (curvature > least and math.isfinite(curvature)):  # NaN compares as false
            self.stopped = NULL
            return
        along = self._rho / curvature
        self.delta.add_(p, alpha=along)
        self.iterations += 1
        if self.iterations % REFRESH:
            r.add_(q, alpha=-along)
        else:
            torch.sub(self._right, self._operator.apply(self.delta, q), out=r)
        square = inner(r, r)
        z = r if self._precondition is None else self._precondition(r)
        rho = square if self._precondition is None else inner(r, z)
        # f(δ) = ½ δᵀAδ − bᵀδ = −½ δᵀ(b + r), and J = f + ½ energy.
        value = (self._energy - inner(self.delta, self._right) - inner(self.delta, r)) / 2
        self.objective.append(max(0.0, value))
        self.residual.append(math.sqrt(square))
        p.mul_(rho / self._rho).add_(z)
        self._rho = rho
        self._test()
