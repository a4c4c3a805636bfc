"""The task vectors of an AdaMerging plan, tensor by tensor, exactly as the merge itself will use them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..engine import Plan
from ..engine.stream import inputs
from ..engine.structure import Item
from ..methods.adamerging import adamerging_vectors
from ..methods.context import Context, Survey
from ..progress import Stop
from .blend import Vectors


def vectors_of(plan: Plan, device: torch.device, stop: Stop | None = None) -> Vectors:
    """A function from a tensor of the plan to (base, task vectors), with TIES's survey made once where it is needed."""
    found = surveyed(plan, device, stop)
    values = {key: plan.values[key] for key in ("split", "density")}

    def vectors(item: Item) -> tuple[Tensor, list[Tensor]]:
        with torch.no_grad():
            base, experts = inputs(plan, item, device)
            assert base is not None  # the method requires one
            taus = adamerging_vectors(base, experts, context=_context(plan, item, found), **values)
            return base.float(), [tau.float() for tau in taus]

    return vectors


def surveyed(plan: Plan, device: torch.device, stop: Stop | None = None) -> Mapping[str, Any]:
    """What the method's survey finds over the whole model; empty where it needs none."""
    survey: Survey | None = None
    if plan.method.survey is not None:
        survey = plan.method.survey(dict(plan.values), len(plan.names), plan.compute)
    if survey is None:
        return {}
    with torch.no_grad():
        for round_ in range(survey.rounds):
            for item in (item for item in plan.items if item.merge):
                if stop is not None:
                    stop.check()
                base, experts = inputs(plan, item, device)
                survey.collect(round_, survey.look(round_, base, experts, _context(plan, item, {})))
            survey.end_round(round_)
    return survey.result()


def _context(plan: Plan, item: Item, survey: Mapping[str, Any]) -> Context:
    return Context(item.name, plan.keys, plan.seed, survey)
