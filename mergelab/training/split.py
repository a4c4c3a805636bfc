"""The task vectors of an AdaMerging plan, tensor by tensor, exactly as the merge itself will use them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..engine import Plan
from ..engine.stream import Run
from ..engine.structure import Item
from ..engine.tensor import inputs
from ..methods.adamerging import adamerging_vectors
from ..methods.context import Context
from ..progress import Stop
from .blend import Vectors


def vectors_of(plan: Plan, device: torch.device, stop: Stop | None = None) -> Vectors:
    """A function from a tensor of the plan to (base, task vectors), with TIES's survey made once where it is needed."""
    survey = Run.of(plan, device, None, None, stop).survey
    values = {key: plan.values[key] for key in ("split", "density")}

    def vectors(item: Item) -> tuple[Tensor, list[Tensor]]:
        with torch.no_grad():
            base, experts = inputs(plan, item, device)
            assert base is not None  # the method requires one
            taus = adamerging_vectors(
                base, experts, context=Context(item.name, plan.keys, plan.seed, survey), **values
            )  # fmt: skip
            return base.float(), [tau.float() for tau in taus]

    return vectors
