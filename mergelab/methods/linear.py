"""Weight average (model soup)."""

from __future__ import annotations

from torch import Tensor

from ..errors import MethodError
from ._kernels import weight, weighted_sum
from .context import Context
from .declaration import Parameter, Promises, Resolved, method


def _check(values: Resolved) -> None:
    total = sum(values["weight"])
    if values["normalize"] and abs(total) < 1e-6:
        raise MethodError(
            f"The weights of 'linear' add up to {total:g}, so they cannot be normalised; change a weight, "
            "or set normalize to false."
        )


@method(
    name="linear",
    title="Weight average",
    group="averages",
    summary="The weighted mean of the models' weights, tensor by tensor.",
    formula=r"\theta = \frac{\sum_t w_t\,\theta_t}{\sum_t w_t}",
    paper="Model soups (Wortsman et al., 2022)",
    url="https://arxiv.org/abs/2203.05482",
    doc="Averages the weights themselves, so no base is needed. It helps when the models were fine-tuned from one base "
    "on the same or close tasks and lie in one basin of the loss. With many different tasks every model's change is"
    " divided by the number of models, and each task loses most of what its expert learned.",
    gives="weights",
    base="unused",
    parameters=(
        weight("How much this model counts in the mean."),
        Parameter(
            "normalize", "bool", True, help="Divide by the sum of the weights, so that only their ratios matter."
        ),
    ),
    promises=Promises(identity={}, zero=None, equal={}),
    check=_check,
)
def linear(
    base: Tensor | None,  # noqa: ARG001
    experts: list[Tensor],
    *,
    context: Context,  # noqa: ARG001
    weight: list[float],
    normalize: bool,
) -> Tensor:
    """Σ w_t θ_t, divided by Σ w_t when ``normalize`` (Wortsman et al., 2022)."""
    if normalize:
        total = sum(weight)
        weight = [value / total for value in weight]
    return weighted_sum(experts, weight, like=experts[0])
