"""The heads of a routed model's tasks: private to each, never merged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from ..errors import RoutingError
from ..models import Model, build
from ..tasks import Head, Suite, heads_for, load_head, zero_shot_head
from .routed import RoutedModel


def heads_of(
    routed: RoutedModel, places: Mapping[str, Path | None], suite: Suite | None, device: str = "auto"
) -> dict[str, Head]:
    """A head for every task: beside its expert (``places``), of the suite's zoo, or from class names.

    Heads from class names are made with the shared model, if it reads words and the suite has the task. Raises
    RoutingError that names the tasks without a head.
    """
    beside = {
        task: load_head(place) for task, place in places.items() if place and (place / "head.safetensors").is_file()
    }
    missing = [task for task in routed.names if task not in beside]
    if missing and suite is not None:
        beside.update({task: head for task, head in heads_for(suite).items() if task in missing})
        missing = [task for task in routed.names if task not in beside]
    if missing and suite is not None:
        beside.update(_from_words(routed, missing, suite, device))
        missing = [task for task in routed.names if task not in beside]
    if missing:
        raise RoutingError(
            f"There is no head for {', '.join(missing)[:200]}: put head.safetensors (weight, bias) beside the expert, "
            "give heads={task: Head}, or heads={} for a model of features only."
        )
    return {task: beside[task] for task in routed.names}


def shared_model(routed: RoutedModel, device: str = "auto") -> Model:
    """The shared model, ready to run."""
    if not routed.config:
        raise RoutingError(
            "The base has no configuration (config.json), so the shared model cannot look at anything and no router "
            "can be trained on it. Name a base folder that has one, or build without a router (router=None)."
        )
    return build(dict(routed.shared), config=routed.config, preprocessor=routed.preprocessor, device=device, copy=False)


def _from_words(routed: RoutedModel, tasks: list[str], suite: Suite, device: str) -> dict[str, Head]:
    known = [task for task in tasks if task in suite.names]
    if not known or not routed.config:
        return {}
    model = shared_model(routed, device)
    if not model.has_text:
        return {}
    with torch.no_grad():
        return {task: zero_shot_head(model, suite[task]) for task in known}
