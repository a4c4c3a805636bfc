"""The laboratory of ``twin_claims.py``: a zoo, its models by name, scores of features. Nothing is computed twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import mergelab
from mergelab.checkpoints import load
from mergelab.models import build, config_of
from mergelab.models.build import saved_preprocess
from mergelab.routing.baseline import BaselineRunner
from mergelab.routing.compression import Compression
from mergelab.routing.decompose import decompose
from mergelab.routing.evaluate import HEADS, answer
from mergelab.routing.gate import Gate
from mergelab.routing.learn import shares
from mergelab.routing.parts import Exclusive
from mergelab.routing.routed import RoutedModel
from mergelab.routing.routers import Router, RouterSettings, train_router
from mergelab.tasks import class_mean_head, heads_for, load_suite
from mergelab.tasks.evaluate import expert_predictions, items, support
from mergelab.zoo import open_zoo

SHOTS = 10
#: Validation items a task at most: balanced data is no more than the smallest task has.
HELD = 300
P90 = Compression(rank_ratio=0.1)


@dataclass(frozen=True, eq=False)
class Items:
    """Pictures of several tasks: the place of each one's task in ``names``, its class, whether its expert is right."""

    names: tuple[str, ...]
    images: Tensor
    owner: Tensor
    truth: Tensor
    expert: Tensor

    def of(self, kept: Tensor) -> Items:
        return Items(self.names, self.images[kept], self.owner[kept], self.truth[kept], self.expert[kept])

    def few(self, per_task: int) -> Tensor:
        """Places of the first ``per_task`` items of each task."""
        return torch.cat([torch.nonzero(self.owner == t).flatten()[:per_task] for t in range(len(self.names))])


@dataclass(eq=False)
class Lab:
    """One zoo, or some of its experts, under one seed."""

    folder: str
    seed: int
    limit: int
    tasks: tuple[str, ...] = ()
    shelf: dict[Any, Any] = field(default_factory=dict)  # kept across seeds

    def __post_init__(self) -> None:
        self.zoo = open_zoo(self.folder)
        self.suite = load_suite(self.zoo.folder)
        self.names = self.tasks or tuple(self.zoo.experts)
        self.base = self.keep("base", lambda: dict(load(self.zoo.base).items()))
        self.experts = {t: self.keep(("expert", t), lambda t=t: dict(load(self.zoo.experts[t]).items()))
                        for t in self.names}  # fmt: skip
        self.model = self.keep("model", lambda: build(self.zoo.base, device="cpu"))
        checkpoint = load(self.zoo.base)
        self.config, self.preprocessor = config_of(checkpoint), saved_preprocess(checkpoint)
        found = heads_for(self.suite)
        self.heads = {t: found[t] for t in self.names}
        self.items = self.keep(("items", self.names, self.limit), self._items)

    def keep(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self.shelf:
            self.shelf[key] = make()
        return self.shelf[key]

    # ---- models -----------------------------------------------------------------------------------------------------

    def merged(self, method: str, names: Sequence[str] | None = None, **parameters: Any) -> dict[str, Tensor]:
        """A static merge with the coefficients that the zoo's builder chose on validation items, unless given."""
        names = tuple(names or self.names)
        tuned = dict(self.zoo.tuned.get(method, {})) | parameters
        experts = {t: self.experts[t] for t in names}
        words = {f"{k}_" if k == "lambda" else k: v for k, v in tuned.items()}
        return self.keep(
            ("merge", method, names, tuple(sorted(tuned.items()))),
            lambda: mergelab.merge(method, experts, None if method == "linear" else self.base, **words),
        )

    def parts(self, shared: Mapping[str, Tensor], key: Any, compression: Compression) -> Mapping[str, Exclusive]:
        return self.keep(("parts", key, compression, self.names),
                         lambda: decompose(shared, self.experts, compression).parts)  # fmt: skip

    def routed(self, shared: Mapping[str, Tensor], parts: Mapping[str, Exclusive], router: Router | None = None,
               gate: Gate | None = None) -> RoutedModel:  # fmt: skip
        names = tuple(parts)
        return RoutedModel(names, shared, parts, {t: self.heads[t] for t in names}, router, gate=gate or Gate(),
                           config=self.config, preprocessor=self.preprocessor)  # fmt: skip

    def runner(self, routed: RoutedModel) -> BaselineRunner:
        return BaselineRunner(routed, self.model)

    def features(self, state: Mapping[str, Tensor], images: Tensor, key: Any = None) -> Tensor:
        """Features of one ordinary model; kept under ``key``."""
        run = lambda: self.model.encode(images, weights=self.model.prepare(state))  # noqa: E731
        return run() if key is None else self.keep(("features", key), run)

    # ---- routers ----------------------------------------------------------------------------------------------------

    def lessons(
        self, shared: Mapping[str, Tensor], key: Any, *, per_task: int | None = None, split: str = "val"
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Features to train a router on and to choose its epoch by, as the routed model's builder splits them."""
        train, held = {}, {}
        settings = RouterSettings(per_task=per_task, seed=self.seed)
        for task in self.names:
            pictures = self.suite[task].split(split)[0]
            most = 1000 if split == "train" else HELD
            drawn = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))[:most]
            pictures = pictures[drawn.sort().values]
            found = self.features(shared, pictures, ("lessons", key, task, split))
            use, kept = shares(len(pictures), task, settings)
            train[task], held[task] = found[use], found[kept]
        return train, held

    def router(
        self, shared: Mapping[str, Tensor], key: Any, *, per_task: int | None = None, split: str = "val"
    ) -> Router:
        train, held = self.lessons(shared, key, per_task=per_task, split=split)
        told = RouterSettings(per_task=per_task, seed=self.seed)
        return train_router(None, train, held, told)

    # ---- items and scores -------------------------------------------------------------------------------------------

    def _items(self) -> Items:
        kept = expert_predictions(self.suite)
        images, owner, truth, expert = [], [], [], []
        for t, name in enumerate(self.names):
            pictures, labels, places = items(self.suite[name], "test", self.limit, 0)
            found = torch.from_numpy(kept.integers(f"expert/{name}").astype(np.int64))[places]
            images.append(pictures)
            truth.append(labels)
            owner.append(torch.full_like(labels, t))
            expert.append(found == labels)
        return Items(self.names, torch.cat(images), torch.cat(owner), torch.cat(truth), torch.cat(expert))

    def unseen(self, task: str) -> dict[str, Tensor]:
        """Test pictures and labels of a task without an expert, and the support of its class means."""
        shown, truth, _ = items(self.suite[task], "test", self.limit, 0)
        images, labels = support(self.suite[task], "test", SHOTS, 0)
        return {"images": shown, "truth": truth, "support": images, "labels": labels}

    def class_means(self, task: str, sets: Mapping[str, Tensor], found: Tensor) -> Tensor:
        """Which of the task's pictures are right, by class means of the same model's features [test; support]."""
        count = len(sets["truth"])
        head = class_mean_head(found[count:], sets["labels"], len(self.suite[task].classes))
        return head.logits(found[:count]).argmax(-1) == sets["truth"]


def run(lab: Lab, routed: RoutedModel, images: Tensor, rows: Tensor, mode: str = "adapter", **options: Any) -> Any:
    return lab.runner(routed).run(images, rows, mode, **options)


def score(lab: Lab, found: Tensor, guess: Tensor, shown: Items | None = None) -> dict[str, Any]:
    """Of features ``[N, d]`` and the router's first choice ``[N]``: which are right under each head policy (tensors in
    ``correct``), accuracies and ratios to the experts (means over tasks), and the router's accuracy."""
    shown = shown or lab.items
    names, heads = shown.names, {t: lab.heads[t] for t in shown.names}
    correct: dict[str, Tensor] = {}
    for head in HEADS:
        by = shown.owner if head == "oracle" else guess
        told = answer(heads, found, by, names, "router_argmax" if head == "oracle" else head)
        correct[head] = (told[:, 0] == shown.owner) & (told[:, 1] == shown.truth)
    return {
        "accuracy": {h: mean(shown, c) for h, c in correct.items()},
        "normalised": {h: normal(shown, c) for h, c in correct.items()},
        "tasks": {n: {h: float(c[shown.owner == t].float().mean()) for h, c in correct.items()}
                  for t, n in enumerate(names)},
        "router": mean(shown, guess == shown.owner),
        "correct": correct,
    }  # fmt: skip


def mean(shown: Items, right: Tensor) -> float:
    """Mean over tasks of the share that is right."""
    return float(np.mean([float(right[shown.owner == t].float().mean()) for t in range(len(shown.names))]))


def normal(shown: Items, right: Tensor) -> float:
    """Mean over tasks of the ratio to the expert on the same items."""
    ratios = []
    for t in range(len(shown.names)):
        mine = shown.owner == t
        expert = float(shown.expert[mine].float().mean())
        if expert > 0:
            ratios.append(float(right[mine].float().mean()) / expert)
    return float(np.mean(ratios))


def paired(shown: Items, one: Tensor, other: Tensor, draws: int = 1000) -> dict[str, float]:
    """Mean over tasks of (one − other), and its 95 % interval from drawing items of each task again (bootstrap)."""
    rng, gap = np.random.RandomState(0), one.float().numpy() - other.float().numpy()
    total = np.zeros(draws)
    for t in range(len(shown.names)):
        mine = gap[(shown.owner == t).numpy()]
        total += mine[rng.randint(0, len(mine), (draws, len(mine)))].mean(1) / len(shown.names)
    low, high = np.percentile(total, [2.5, 97.5])
    return {"difference": mean(shown, one) - mean(shown, other), "low": float(low), "high": float(high)}


def plain(found: dict[str, Any]) -> dict[str, Any]:
    """A score without its tensors, for JSON."""
    return {k: v for k, v in found.items() if k != "correct"}


def zoo_key(folder: str) -> str:
    return Path(folder).name
