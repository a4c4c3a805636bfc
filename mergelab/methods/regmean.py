"""RegMean: the linear layer whose outputs are closest to all experts' outputs on their own inputs, in closed form."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from ._blocks import (
    BIAS,
    LACKS,
    LEFTOVER,
    TASK_WEIGHT,
    Work,
    check_weights,
    matrices,
    norm,
    off_diagonal,
    ridge,
    system,
    with_leftovers,
)
from ._direct import RESIDUAL, solve
from ._matching import Gram
from .context import Context
from .declaration import Cost, Promises, method

#: A result this many times larger than the largest expert is no solution but an unseen direction blown up.
_MOST = 10.0


@method(
    name="regmean",
    title="RegMean",
    kind="matched",
    group="matched",
    summary="Each linear layer's least-squares fit to all experts' outputs on their own inputs.",
    formula=r"W = \Bigl(\sum_t w_t A_t\Bigr)^{-1} \sum_t w_t A_t W_t,\quad A_t = \tfrac1n X_t^\top X_t",
    paper="Dataless knowledge fusion by merging weights of language models (Jin et al., 2022)",
    url="https://arxiv.org/abs/2212.09849",
    doc="Solves a least-squares problem per linear layer, so that the merged layer gives on each task's inputs what "
    "that task's expert gives there; it needs only the inputs' second moments, without labels. It is usually the best "
    "step up from merging without data, since tasks that use different input directions stop overwriting each other. "
    "It does not know which outputs matter and has nothing to say about biases, norms and embeddings, and with very "
    "few examples the moments have not full rank and much stays at the init.",
    gives="weights",
    base="optional",
    models_min=2,
    data="unlabelled",
    parameters=(
        off_diagonal(0.9),
        ridge(1e-8),
        LEFTOVER,
        BIAS,
        TASK_WEIGHT,
    ),
    promises=Promises(equal={}),
    cost=Cost(copies=7, work=4, products=lambda _values: 2),
    check=lambda values: check_weights(values, "regmean"),
    statistics=lambda values: with_leftovers(("gram",), values),
    init=True,
)
def regmean(
    base: Tensor | None,
    experts: list[Tensor],
    *,
    context: Context,
    off_diagonal: float,
    ridge: float,
    leftover: str,
    bias: str = "leftover",
    weight: list[float],
) -> Tensor:
    """(Σ w A)⁻¹ Σ w A W (Jin et al., 2022, equation 2), solved for the difference from the start."""
    del bias  # the engine joins a bias with its weight, so that there is nothing to do here
    started = time.perf_counter()
    work = Work(base, experts, weight, context)
    if work.equal:
        return work.same()
    blocks = work.blocks("gram")
    if blocks is None:
        return work.leave(leftover, context.missing or LACKS["gram"])
    layout = blocks[0].layout
    start = matrices(work.start, layout, 1)[0]
    made = system("gram", blocks, weight, start, alpha=off_diagonal)
    assert isinstance(made, Gram)
    if not float(made.sum.diagonal().max()):
        work.log(by="init", out=None, stopped="no information")
        return work.start
    right = made.pull([matrices(expert, layout, 1)[0] for expert in experts], start)
    largest = _Largest([start, *experts])
    made_of: list[Tensor] = []

    def fits(delta: Tensor) -> bool:
        made_of[:] = [start + delta]
        return largest.times(norm(made_of[0])) <= _MOST

    found = solve(made.sum, right, left=made.left, ridge=ridge, exact=start.dtype == torch.float64, fits=fits)
    out = (made_of[0] if found.by == "cholesky" else start + found.delta).view(work.start.shape)
    if context.log is not None:
        work.log(
            by=found.by, out=out, ridge=found.ridge, relative_residual=found.residual,
            warning=_warning(norm(out), largest, found.residual), seconds=time.perf_counter() - started,
        )  # fmt: skip
    return out


class _Largest:
    """The largest norm of some tensors, looked at one by one only as far as a question needs."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._left, self.norm = list(tensors), 0.0

    def times(self, size: float) -> float:
        """``size`` over the largest norm, or over one that is already large enough for the answer to be small."""
        while self._left and not size <= _MOST * self.norm:
            self.norm = max(self.norm, norm(self._left.pop(0)))
        return size / self.norm if self.norm else float("inf") if size else 0.0


def _warning(size: float, largest: _Largest, residual: float) -> str:
    """What looks wrong about a solution, in words; "" where nothing does."""
    said = []
    if not largest.times(size) <= _MOST:
        said.append(f"its norm is {size:.3g}, that of the largest model {largest.norm:.3g}")
    if not residual <= RESIDUAL:
        said.append(f"its equations are met to {residual:.1%} only")
    return "; ".join(said)
