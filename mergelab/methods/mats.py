"""MaTS: matching models in their task parameter subspaces, by conjugate gradients from any other merge."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import MethodError
from ._blocks import (
    BIAS,
    FLOOR_HELP,
    FLOOR_RELATIVE,
    LACKS,
    LEFTOVER,
    NORMALIZE,
    OBJECTIVES,
    TASK_WEIGHT,
    Work,
    check_weights,
    matrices,
    norm,
    off_diagonal,
    ridge,
    split,
    system,
    weighted_mean,
    with_leftovers,
)
from ._cg import ITERATIONS, ConjugateGradients, Reference
from ._matching import System, jacobi, kronecker_mean
from .context import Context
from .declaration import Cost, Parameter, Promises, Resolved, method

if TYPE_CHECKING:
    from ..statistics import Block


def _check(values: Resolved) -> None:
    check_weights(values, "mats")
    if values["preconditioner"] == "kronecker" and values["objective"] not in ("kfac", "gram"):
        raise MethodError(
            f"Preconditioner 'kronecker' of 'mats' needs objective 'kfac' or 'gram', not {values['objective']!r}; "
            "choose 'jacobi' or 'none'."
        )
    if values["bias"] == "augment" and values["objective"] not in ("kfac", "gram"):
        raise MethodError(
            f"Parameter 'bias' of 'mats' is 'augment', which needs objective 'kfac' or 'gram', not "
            f"{values['objective']!r}; leave biases as leftovers, or choose another objective."
        )


@method(
    name="mats",
    title="MaTS",
    kind="matched",
    group="matched",
    summary="Matches all experts where each task's Fisher information says it matters, by a few steps from an init.",
    formula=r"\Bigl(\sum_t w_t C_t\Bigr)\theta = \sum_t w_t C_t \theta_t,\quad C_t = A_t \otimes G_t",
    paper="Merging by matching models in task parameter subspaces (Tam et al., 2024)",
    url="https://arxiv.org/abs/2312.04339",
    doc="Weights each task by a block-diagonal Fisher matrix per layer (input moments times output-gradient moments) "
    "and runs a few steps of conjugate gradients from another merge towards the weights that all tasks agree on where "
    "it matters to them. It helps most on top of a good init such as task arithmetic or RegMean, with the number of "
    "iterations chosen on validation images, since stopping early is what regularises it. It needs labelled examples "
    "and a backward pass for its statistics, and run to convergence it fits their noise and gets worse.",
    gives="weights",
    base="optional",
    models_min=2,
    data="labelled",
    parameters=(
        Parameter("objective", "choice", "kfac", tuple(OBJECTIVES),
                  help="What weighs the tasks: K-FAC (A and G), Gram (A only, RegMean's), the diagonal Fisher, a full "
                  "block for small vectors such as (IA)³'s, or nothing (identity: the mean)."),
        Parameter("iterations", "int", 10, (0, 10_000), slider=(0, 100),
                  help="Steps of conjugate gradients; 0 keeps the init."),
        Parameter("rtol", "float", 1e-5, (1e-14, 1.0), slider=(1e-8, 1e-2),
                  help="A block stops early once its residual is below this share of the residual at the mean."),
        off_diagonal(1.0),
        NORMALIZE,
        Parameter("damping", "float", 0.0, (0.0, 1e3), slider=(0.0, 1.0),
                  help="Pull towards the init, relative to the mean diagonal of the system (our extension)."),
        Parameter("preconditioner", "choice", "none", ("none", "jacobi", "kronecker"),
                  help="Changes which directions the first steps fit, so also the result at a given number of steps; "
                  "jacobi solves objective diag in one step."),
        Parameter("floor", "float", 0.0, (0.0, 1.0), slider=(0.0, 1e-6), help=FLOOR_HELP),
        FLOOR_RELATIVE,
        ridge(1e-6),
        LEFTOVER,
        BIAS,
        TASK_WEIGHT,
    ),
    promises=Promises(equal={}),
    cost=Cost(copies=10, work=4, products=lambda values: values["iterations"] + 1),
    check=_check,
    statistics=lambda values: with_leftovers(OBJECTIVES[values["objective"]], values),
    init=True,
)  # fmt: skip
def mats(
    base: Tensor | None,
    experts: list[Tensor],
    *,
    context: Context,
    objective: str,
    iterations: int,
    rtol: float,
    off_diagonal: float,
    normalize: str,
    damping: float,
    preconditioner: str,
    floor: float,
    floor_relative: float,
    ridge: float,
    leftover: str,
    bias: str = "leftover",
    weight: list[float],
) -> Tensor:
    """``iterations`` steps of conjugate gradients on Σ w C (θ − θ_t) = 0 from the start (Tam et al., 2024)."""
    del bias  # the engine joins a bias with its weight, so that there is nothing to do here
    started = time.perf_counter()
    work = Work(base, experts, weight, context)
    if work.equal:
        return work.same()
    blocks: Sequence[Block] = ()
    if objective != "identity":
        found = work.blocks(objective)
        if found is None:
            return work.leave(leftover, context.missing or LACKS[objective])
        blocks = found
    layout, parts = split(work, objective, blocks)
    solvers = []
    for part in range(parts):
        start = _matrix(work.start, objective, layout, parts, part)
        made = system(
            objective, blocks, weight, start, part=part, alpha=off_diagonal, normalize=normalize,
            floor=floor, relative=floor_relative,
        )  # fmt: skip
        models = [_matrix(expert, objective, layout, parts, part) for expert in experts]
        solvers.append(
            _solver(
                work,
                made,
                models,
                start,
                rtol=rtol,
                damping=damping,
                preconditioner=preconditioner,
                ridge=ridge,
            )
        )
    if all(solver is None for solver in solvers):
        work.log(by="init", out=None, stopped="no information")
        return work.start
    return _run(work, solvers, iterations=iterations, layout=layout, parts=parts, started=started)


def _matrix(tensor: Tensor, objective: str, layout: str, parts: int, part: int) -> Tensor:
    """One slice as a contiguous matrix; the tensor itself where the objective knows no layers."""
    if objective not in ("kfac", "gram"):
        return tensor
    return matrices(tensor, layout, parts)[part].contiguous()


def _solver(
    work: Work,
    made: System,
    models: Sequence[Tensor],
    start: Tensor,
    *,
    rtol: float,
    damping: float,
    preconditioner: str,
    ridge: float,
) -> ConjugateGradients | None:
    """The solver of one slice; None where no task's statistics see anything."""
    if made.mean_diagonal() == 0:
        return None
    right, energy, pulls = made.right(models, start)
    rounding = 4 * torch.finfo(start.dtype).eps * pulls
    mean = weighted_mean(models, work.weights)
    size = norm(right)

    def exact() -> float:
        """‖Σ w C (θ_t − mean)‖ = ‖b − A (mean − start)‖; ‖b‖ where that is nothing but rounding."""
        gap = mean - start
        found = norm(right - made.total(gap, torch.empty_like(gap)))
        return found if found > rounding else size

    if work.context.start is None:
        bound, reference = size, (lambda: size)
    else:
        bound, reference = sum(made.bound(m) * norm(model - mean) for m, model in enumerate(models)), exact
    made.damp(damping)
    precondition = None
    if preconditioner == "jacobi":
        precondition = jacobi(made)
    elif preconditioner == "kronecker":
        precondition = kronecker_mean(made, ridge)
    scale = Reference(rtol, max(bound, size), reference, rounding)
    return ConjugateGradients(made, right, energy, scale, precondition)


def _run(
    work: Work,
    solvers: Sequence[ConjugateGradients | None],
    *,
    iterations: int,
    layout: str,
    parts: int,
    started: float,
) -> Tensor:
    """All slices in step, so that a snapshot is of the whole tensor; the merged tensor, and its entry in the log."""
    context, running = work.context, [solver for solver in solvers if solver is not None]

    def assembled() -> Tensor:
        out = work.start.clone()
        for view, solver in zip(matrices(out, layout, parts) if layout else [out], solvers, strict=True):
            if solver is not None:
                view.add_(solver.delta)
        return out

    for k in range(iterations + 1):
        if k:
            for solver in running:
                solver.step()
        if context.snapshot is not None and k in context.grid:
            context.snapshot(k, assembled())
        if all(solver.stopped for solver in running):
            break
    out = assembled()
    reasons = dict.fromkeys(solver.stopped or ITERATIONS for solver in running)
    work.log(
        by="cg", out=out, stopped=", ".join(reasons), iterations=max(solver.iterations for solver in running),
        objective=_summed([solver.objective for solver in running]),
        residual=[square**0.5 for square in _summed([[r * r for r in solver.residual] for solver in running])],
        seconds=time.perf_counter() - started,
    )  # fmt: skip
    return out


def _summed(series: Sequence[Sequence[float]]) -> list[float]:
    """The sum over slices at every iteration; a slice that stopped earlier stays at its last value."""
    length = max(len(values) for values in series)
    return [sum(values[min(k, len(values) - 1)] for values in series) for k in range(length)]
