"""Spherical linear interpolation of two models."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._kernels import delta, dot
from .context import Context
from .declaration import Cost, Parameter, Promises, method


def slerp_tensors(a: Tensor, b: Tensor, t: float, threshold: float) -> Tensor:
    """The point at ``t`` from ``a`` (0) to ``b`` (1) along the arc between their directions (Shoemake, 1985).

    The coefficients sin((1−t)φ)/sin φ and sin(tφ)/sin φ come from the angle between the flattened tensors and weigh the
    tensors as they are. Straight interpolation where the directions are parallel or opposite (|cos φ| > threshold), or
    one tensor is zero.
    """
    norms = math.sqrt(dot(a, a) * dot(b, b))
    cosine = max(-1.0, min(1.0, dot(a, b) / norms)) if norms > 0 else 1.0
    if abs(cosine) > threshold or abs(cosine) == 1.0:
        left, right = 1.0 - t, t
    else:
        angle = math.acos(cosine)
        left, right = math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
    return torch.mul(a, left).add_(b, alpha=right)


@method(
    name="slerp",
    title="SLERP",
    group="averages",
    summary="Go from one model to another along the arc between them instead of the straight line.",
    formula=r"\theta = \frac{\sin((1-t)\varphi)}{\sin\varphi}\,\theta_1 "
    r"+ \frac{\sin(t\varphi)}{\sin\varphi}\,\theta_2,\quad "
    r"\cos\varphi = \frac{\langle\theta_1,\theta_2\rangle}{\|\theta_1\|\,\|\theta_2\|}",
    paper="Animating rotation with quaternion curves (Shoemake, 1985)",
    url="https://doi.org/10.1145/325334.325242",
    doc="Mixes exactly two models, tensor by tensor, so that the norm does not shrink half-way as it does on a straight"
    " line. It helps when two models, or two task vectors, point in clearly different directions. Two fine-tunes of"
    " one base are almost parallel as whole weights, so there it is the plain mean: choose space=task_vectors for a"
    " difference.",
    gives="weights",
    base="optional",
    models_min=2,
    models_max=2,
    parameters=(
        Parameter("t", "float", 0.5, (0.0, 1.0), step=0.05, help="Where between: 0 the first model, 1 the second."),
        Parameter("space", "choice", "weights", ("weights", "task_vectors"),
                  help="Whether whole weights are interpolated, or their differences from the base (then needed)."),
        Parameter("threshold", "float", 0.9995, (0.0, 1.0), step=0.0005, slider=(0.9, 1.0),
                  help="Above this |cosine| a straight line is taken."),
    ),
    promises=Promises(equal={}, permutation=False),
    cost=Cost(copies=3, work=4),
    needs_base=lambda values: values["space"] == "task_vectors",
)  # fmt: skip
def slerp(
    base: Tensor | None, experts: list[Tensor], *, context: Context, t: float, space: str, threshold: float
) -> Tensor:
    """SLERP of whole weights, or θ0 + SLERP(τ_1, τ_2); the angle is taken per tensor."""
    if space == "weights":
        return slerp_tensors(experts[0], experts[1], t, threshold)
    assert base is not None
    return slerp_tensors(delta(base, experts[0], context), delta(base, experts[1], context), t, threshold).add_(base)
