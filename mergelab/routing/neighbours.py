"""Routers without a network: the nearest class mean, and the nearest neighbours. Nothing is trained by gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..progress import Progress, Stop, report
from .features import Data
from .routers import Fitted, RouterError, RouterSettings, check_shapes

#: Weight exp(cosine / _WARMTH) of a neighbour's vote, as in instance discrimination (Wu et al. 2018) and DINO.
_WARMTH = 0.07
#: Added to every task's share of the votes: no logit is -inf, and the softmax of a unanimous vote is about 1 - T/1000.
_LEAST = 1e-3
_CHUNK = 1024


class UniformRouter(Fitted):
    """The same logit for every task: what a router has to beat."""

    kind = "uniform"

    def score(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), len(self.names))

    @classmethod
    def check(cls, tensors: Mapping[str, Tensor], *_: int) -> None:
        check_shapes(tensors, {})


class CentroidRouter(Fitted):
    """The nearest task mean in (standardised) feature space; no task is likelier than another beforehand.

    Metric euclidean: logits β(2·x·m - ||m||²), which differ from -β||x - m||² by the same number in every column; that
    is linear discriminant analysis with one spherical covariance. Metric cosine: β·cos(x, m). The sharpness β is fitted
    on the training data, see :func:`fit_centroid`.
    """

    kind = "centroid"

    def score(self, x: Tensor) -> Tensor:
        return self.tensors["sharpness"] * _closeness(x, self.tensors["centroids"], self.settings.metric)

    @classmethod
    def check(cls, tensors: Mapping[str, Tensor], tasks: int, width: int) -> None:
        check_shapes(tensors, {"centroids": (tasks, width), "sharpness": (1,)})
        if float(tensors["sharpness"]) <= 0:
            raise RouterError("The router's tensor 'sharpness' must be above 0. Train the router again.")


class KnnRouter(Fitted):
    """A vote of the ``settings.k`` nearest training examples by cosine, the nearer the heavier.

    logits = log(share of the votes + 0.001). A vote weighs exp(cosine / 0.07), divided by how many examples its task
    has. All examples that are as near as the k-th one vote, so the result does not depend on their order.
    """

    kind = "knn"

    def score(self, x: Tensor) -> Tensor:
        bank, labels, tasks = self.tensors["bank"], self.tensors["labels"], len(self.names)
        votes = functional.one_hot(labels, tasks).float()
        votes = votes / votes.sum(dim=0)
        parts = [_shares(rows, bank, votes, min(self.settings.k, len(bank))) for rows in x.split(_CHUNK)]
        return (torch.cat(parts) + _LEAST).log() if parts else torch.zeros(0, tasks)

    @classmethod
    def check(cls, tensors: Mapping[str, Tensor], tasks: int, width: int) -> None:
        check_shapes(tensors, {"bank": (-1, width), "labels": (-1,)})
        labels, bank = tensors["labels"], tensors["bank"]
        if len(labels) != len(bank):
            raise RouterError(f"The knn router has {len(labels)} labels for {len(bank)} examples. Train it again.")
        if int(labels.min()) < 0 or int(labels.max()) >= tasks:
            raise RouterError(f"The knn router's labels must be from 0 to {tasks - 1}, one a task. Train it again.")
        if int((torch.bincount(labels, minlength=tasks) == 0).sum()):
            raise RouterError("The knn router has a task without an example. Train it again.")


def fit_centroid(
    data: Data, settings: RouterSettings, progress: Progress | None, stop: Stop | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tasks' means, and the sharpness β that makes the softmax of the logits fit the training data best.

    An example is measured against its own task's mean *without* it. Tasks that do not overlap would ask for an infinite
    β; as in Platt scaling (1999), the wanted probabilities are therefore (n + 1)/(n + T) for an example's task of n
    examples and 1/(n + T) for each other. The loss is convex in β; the minimum is found by golden section over log β.
    """
    tasks = len(data.names)
    if stop is not None:
        stop.check()
    x, labels = data.x.double(), data.labels
    counts = torch.bincount(labels, minlength=tasks).double()
    sums = torch.zeros(tasks, data.width, dtype=torch.float64).index_add_(0, labels, x)
    centroids = sums / counts[:, None]
    closeness = _closeness(x, centroids, settings.metric)
    others = (counts > 1)[labels]
    without = (sums[labels] - x)[others] / (counts[labels] - 1)[others, None]
    closeness[others.nonzero()[:, 0], labels[others]] = _pairwise(x[others], without, settings.metric)
    sharpness = _sharpness(closeness, labels, counts) if tasks > 1 else 1.0
    report(progress, 1, 1, "router: task means")
    return {"centroids": centroids.float(), "sharpness": torch.tensor([sharpness])}, {"sharpness": sharpness}


def fit_knn(
    data: Data, _: RouterSettings, progress: Progress | None, stop: Stop | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Keep the training examples at length 1, with their tasks."""
    if stop is not None:
        stop.check()
    report(progress, 1, 1, "router: examples kept")
    return {"bank": functional.normalize(data.x, dim=1), "labels": data.labels}, {}


def _closeness(x: Tensor, means: Tensor, metric: str) -> Tensor:
    """``[N, T]``: cosine, or 2·x·m - ||m||²."""
    if metric == "cosine":
        return functional.normalize(x, dim=1) @ functional.normalize(means, dim=1).T
    return 2 * x @ means.T - (means * means).sum(dim=1)


def _pairwise(x: Tensor, means: Tensor, metric: str) -> Tensor:
    """``[N]``: the closeness of each row of ``x`` to the same row of ``means``."""
    if metric == "cosine":
        return (functional.normalize(x, dim=1) * functional.normalize(means, dim=1)).sum(dim=1)
    return 2 * (x * means).sum(dim=1) - (means * means).sum(dim=1)


def _sharpness(closeness: Tensor, labels: Tensor, counts: Tensor) -> float:
    tasks = closeness.shape[1]
    wanted = (1 / (counts + tasks))[labels][:, None].expand(-1, tasks).clone()
    wanted[torch.arange(len(labels)), labels] *= counts[labels] + 1
    weight = (1 / counts)[labels] / tasks
    spread = float((closeness - closeness.mean(dim=1, keepdim=True)).abs().mean())
    if not spread > 0:
        return 1.0  # nothing to tell the tasks by; any sharpness is as good

    def loss(log_beta: float) -> float:
        predicted = (closeness * (math.exp(log_beta) / spread)).log_softmax(dim=1)
        return -float(((wanted * predicted).sum(dim=1) * weight).sum())

    low, high, golden = math.log(1e-4), math.log(1e4), (math.sqrt(5) - 1) / 2
    for _ in range(40):
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if loss(left) <= loss(right) else (left, high)
    return math.exp((low + high) / 2) / spread


def _shares(x: Tensor, bank: Tensor, votes: Tensor, k: int) -> Tensor:
    near = functional.normalize(x, dim=1) @ bank.T
    top = near.topk(k, dim=1).values
    heavy = ((near - top[:, :1]) / _WARMTH).exp() * (near >= top[:, -1:] - 1e-6)
    cast = heavy @ votes
    return cast / cast.sum(dim=1, keepdim=True)
