"""Task arithmetic: add up what each expert learned."""

from __future__ import annotations

from torch import Tensor

from ._kernels import scale, weight, weighted_delta
from .context import Context
from .declaration import Promises, method


@method(
    name="task_arithmetic",
    title="Task arithmetic",
    group="task vectors",
    summary="The base plus a coefficient times the sum of the task vectors.",
    formula=r"\theta = \theta_0 + \lambda \sum_t w_t\,(\theta_t - \theta_0)",
    paper="Editing models with task arithmetic (Ilharco et al., 2022)",
    url="https://arxiv.org/abs/2212.04089",
    doc="Adds the experts' differences from the base, scaled by one coefficient; a negative weight takes a task away. "
    "It helps when task vectors hardly overlap, which is usual for different tasks on one large base. When they "
    "conflict they cancel or overshoot, and the coefficient has to be chosen on validation data.",
    base="required",
    parameters=(
        weight("How much of this model's task vector is added; negative takes it away."),
        scale(
            1.0,
            "Scales the sum of the task vectors. With one expert, 1 gives it back; with eight, 0.1 to 0.4 is usual.",
        ),
    ),
    promises=Promises(identity={}, zero={"lambda": 0.0}),
)
def task_arithmetic(base: Tensor, experts: list[Tensor], *, context: Context, weight: list[float]) -> Tensor:
    """Σ w_t τ_t (Ilharco et al., 2022, section 2)."""
    return weighted_delta(base, experts, weight, context)
