"""Heads: from features to class scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import MergeLabError, TaskError
from ..models import config_of, family_of
from ..models.build import read_json

if TYPE_CHECKING:
    from ..models import Model, Weights
    from .suite import Suite, Task

#: What heads are called wherever data use is stated.
TRAINED, ZERO_SHOT, CLASS_MEAN, GIVEN = "trained", "zero-shot", "class mean", "given"


@dataclass(frozen=True, eq=False)
class Head:
    """Scores of C classes from features of width d.

    ``logits(f) = scale * g(f @ projection.T) @ weight.T + bias`` where g divides by the L2 norm if ``normalize``.

    weight [C, d]; bias [C] or None; projection [d, h] or None (for a vision tower without its own projection, whose
    features have the width h); kind: trained, zero-shot, class mean or given.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    normalize: bool = False
    projection: Tensor | None = None
    kind: str = GIVEN

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or not len(self.weight):
            raise TaskError(f"A head's weight must have the shape [classes, width], found {list(self.weight.shape)}.")
        if self.bias is not None and tuple(self.bias.shape) != (len(self.weight),):
            raise TaskError(
                f"A head of {len(self.weight)} classes needs a bias of that length, found {list(self.bias.shape)}."
            )
        if self.projection is not None and (
            self.projection.ndim != 2 or self.projection.shape[0] != self.weight.shape[1]
        ):
            raise TaskError(
                f"A head's projection {list(self.projection.shape)} must end at its weight's width "
                f"{self.weight.shape[1]}."
            )

    @property
    def classes(self) -> int:
        return int(self.weight.shape[0])

    @property
    def width(self) -> int:
        """The width of the features that it takes."""
        return int((self.weight if self.projection is None else self.projection).shape[1])

    def logits(self, features: Tensor) -> Tensor:
        """Class scores [N, C] of features [N, width], in the features' dtype and on their device."""
        if self.projection is not None:
            features = features @ self.projection.to(features).T
        if self.normalize:
            features = F.normalize(features, dim=-1)
        scores = self.scale * features @ self.weight.to(features).T
        return scores if self.bias is None else scores + self.bias.to(features)


def check_head(head: Head, task: Task, width: int, where: str) -> Head:
    """``head`` if it fits the task's classes and the model's width; a :class:`TaskError` naming both otherwise."""
    if head.classes != len(task.classes):
        raise TaskError(
            f"The head of {task.name} has {head.classes} classes, the task has {len(task.classes)}. "
            "Head and suite do not belong together."
        )
    if head.width != width:
        raise TaskError(
            f"The head of {task.name} takes features of width {head.width}, {where} gives {width}. "
            "Evaluate a model made from the suite's own base, or give heads that fit."
        )
    return head


def load_head(folder: str | Path) -> Head:
    """The head that was trained with an expert: ``head.safetensors`` (weight [C, d], bias [C]) in its folder."""
    from ..checkpoints import load

    path = Path(folder) / "head.safetensors"
    if not path.is_file():
        raise TaskError(f"{path.parent.name} has no head.safetensors, so the expert has no head. Build the zoo again.")
    try:
        with load(path) as stored:
            names = set(stored)
            if not {"weight"} <= names <= {"weight", "bias"}:
                raise TaskError(f"{path} must hold 'weight' and 'bias', found {', '.join(sorted(names))[:200]}.")
            tensors = {name: stored[name].float() for name in names}
    except TaskError:
        raise
    except MergeLabError as error:
        raise TaskError(f"The head {path.parent.name}/{path.name} cannot be read: {error}") from None
    if not all(torch.isfinite(t).all() for t in tensors.values()):
        raise TaskError(f"{path} holds NaN or infinity. Build the zoo again.")
    return Head(tensors["weight"], tensors.get("bias"), kind=TRAINED)


def heads_for(suite: Suite | str | Path) -> dict[str, Head]:
    """The heads of a suite's experts, by task; empty for a suite that belongs to no zoo."""
    from .suite import _inside, load_suite

    suite = load_suite(suite)
    if suite.zoo is None:
        return {}
    experts = (read_json(suite.zoo / "zoo.json") or {}).get("experts")
    if not isinstance(experts, dict):
        raise TaskError(f"zoo.json of {suite.zoo.name} lists no experts. Build the zoo again.")
    places = {name: _inside(suite.zoo, experts[name], "zoo.json") for name in suite.names if name in experts}
    return {name: load_head(place) for name, place in places.items()}


def heads_fit(suite: Suite, model: Model) -> bool:
    """Whether the suite's zoo has a base of the model's own family: only then do its heads mean anything for it."""
    if suite.zoo is None:
        return False
    from ..checkpoints import load

    listing = read_json(suite.zoo / "zoo.json") or {}
    try:
        config = config_of(load(suite.zoo / str(listing.get("base", "base"))))
        return family_of(config).name == model.family
    except MergeLabError:
        return True  # no base beside the heads: their width decides


def zero_shot_head(model: Model, task: Task, *, weights: Weights | None = None) -> Head:
    """A head from class names (Radford et al. 2021, section 3.1.4).

    Every template filled with a class name is embedded and L2-normalised; their mean, L2-normalised again, is the
    class's row. Scores are cosines times exp(logit_scale).
    """
    templates = task.templates or ("a photo of {}.",)
    texts = [fill(template, name) for name in task.classes for template in templates]
    weights = weights or model.weights
    features = model.encode_text(texts, weights=weights)
    with model.using(weights):
        scale = model.logit_scale
    return zero_shot_weight(features.view(len(task.classes), len(templates), -1), scale)


def zero_shot_weight(features: Tensor, logit_scale: float | None) -> Head:
    """The head of text features [C, templates, d] (see :func:`zero_shot_head`)."""
    rows = F.normalize(F.normalize(features, dim=-1).mean(1), dim=-1)
    scale = 1.0 if logit_scale is None else float(torch.tensor(logit_scale).exp())
    return Head(rows, scale=scale, normalize=True, kind=ZERO_SHOT)


def fill(template: str, name: str) -> str:
    """``name`` in place of ``{}`` (only that: a template is text from a file, not a format string)."""
    return template.replace("{}", name) if "{}" in template else f"{template} {name}"


def class_mean_head(features: Tensor, labels: Tensor, classes: int) -> Head:
    """Nearest class mean by cosine: support features [N, d] are normalised, averaged per class, normalised again.

    (Snell et al. 2017's prototypes with cosine similarity.) A class without support is never predicted.
    """
    features = F.normalize(features, dim=-1)
    sums = torch.zeros(classes, features.shape[1]).index_add_(0, labels, features)
    bias = torch.zeros(classes)
    bias[torch.bincount(labels, minlength=classes) == 0] = -torch.inf
    return Head(F.normalize(sums, dim=-1), bias=bias, normalize=True, kind=CLASS_MEAN)


def given(heads: object, tasks: Sequence[Task]) -> None:
    """Reject heads that are not a mapping from task names to heads."""
    names = [task.name for task in tasks]
    if not isinstance(heads, dict) or not all(isinstance(h, Head) for h in heads.values()):
        raise TaskError(f"heads must map task names ({', '.join(names)[:200]}) to mergelab.tasks.Head objects.")
