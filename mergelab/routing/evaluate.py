"""Measuring a routed model: which head answers is said in every score, and what the router did is shown beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import RoutingError, suggest
from ..progress import Progress, Stop
from ..tasks import Evaluation, Head, Score, Suite, bootstrap_interval, class_mean_head, load_suite
from ..tasks.evaluate import SHOTS, average, expert_accuracy, expert_predictions, items, support
from ..tasks.metrics import mean, normalised
from .gate import Gate, entropy, fixed, one_hot, uniform
from .groups import Centroids
from .modes import BATCH, GroupSettings, Ran, Runner
from .routed import RoutedModel

#: Which head answers. Only ``oracle`` is told the task.
HEADS = ("oracle", "router_argmax", "max_logit")
SAID = {
    "oracle": "oracle head: told the task of every input",
    "router_argmax": "head of the task that the router finds likeliest",
    "max_logit": "highest logit of all heads",
}


@dataclass(frozen=True, eq=False)
class RoutedEvaluation:
    """What :func:`evaluate_routed` found.

    ``router``: ``accuracy`` (share of inputs whose largest weight is their own task's), ``confusion`` and ``weights``
    (task -> expert -> share, mean weight), ``entropy`` (task -> mean, in nats), ``when_right`` and ``when_wrong``
    (accuracy where the router was right, or wrong). ``predicted``: task -> (expert index, class index) ``[n, 2]``.
    """

    evaluation: Evaluation
    head: str
    mode: str
    why: str
    names: tuple[str, ...]
    router: Mapping[str, Any]
    seconds: Mapping[str, float]
    merges: int
    bytes: Mapping[str, int]
    weights: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    groups: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    predicted: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The contract of ``evaluate --json``, and what a routed model adds to it."""
        count = sum(score.n for score in self.evaluation.tasks.values())
        return {
            **self.evaluation.to_dict(),
            "head": self.head,
            "mode": self.mode,
            "why": self.why,
            "experts": list(self.names),
            "router": dict(self.router),
            "phases": {phase: round(seconds, 4) for phase, seconds in self.seconds.items()},
            "seconds_per_1000": round(1000 * sum(self.seconds.values()) / max(count, 1), 3),
            "merges": self.merges,
            "bytes": dict(self.bytes),
        }


def evaluate_routed(
    routed: RoutedModel | Runner | str | Path,
    suite: Suite | str | Path = "starter",
    *,
    mode: str = "auto",
    head: str = "router_argmax",
    weights: str | Sequence[float] | Tensor | None = None,
    gate: Gate | None = None,
    grouping: GroupSettings | Centroids | None = None,
    split: str = "test",
    limit: int | None = None,
    tasks: Iterable[str] | None = None,
    unseen: bool = True,
    order: str = "mixed",
    corrupt: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
    batch: int = BATCH,
    device: str = "auto",
    shots: int = SHOTS,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> RoutedEvaluation:
    """Measure a routed model on a suite.

    Args:
        routed: a routed model, its folder, or a :class:`Runner`.
        mode: how it runs (see :class:`Runner`).
        head: ``oracle`` (told the task: an upper bound), ``router_argmax`` (the head of the task with the largest
            weight) or ``max_logit`` (the highest logit of all heads). But for ``oracle``, an answer is right only if
            task and class are.
        weights: None for the router; ``oracle`` (one-hot of the true task), ``uniform``, or fixed weights ``[T]``.
        order: ``mixed`` puts the inputs of all tasks into one shuffled stream, ``sorted`` one task after the other.
        corrupt: changes pictures uint8 ``[N, H, W, 3]`` before they are shown.

    A task without an expert has no head in the routed model; it is scored by class means of ``shots`` labelled training
    pictures a class (their features come from the routed model too), which is told the task, under every policy.

    Raises RoutingError or TaskError for what is not known or does not fit.
    """
    _known("head", head, HEADS)
    _known("order", order, ("mixed", "sorted"))
    runner = _runner(routed, device)
    names = runner.routed.names
    suite = load_suite(suite)
    chosen = [task for task in suite.pick(tasks) if task.name in names or unseen]
    if not chosen:
        raise RoutingError(f"The suite {suite.name} has none of the tasks {', '.join(names)}.")
    missing = [task.name for task in chosen if task.name in names and task.name not in runner.routed.heads]
    if missing:
        raise RoutingError(f"The routed model has no head for {missing[0]}; build it from experts that have heads.")
    started = time.perf_counter()
    shown = [items(task, split, limit, seed) for task in chosen]
    pictures = [corrupt(images) if corrupt else images for images, _, _ in shown]
    extra = {task.name: support(task, split, shots, seed) for task in chosen if task.name not in names}
    sets = [*pictures, *(images for images, _ in extra.values())]
    labels = [task.name for task in chosen] + list(extra)
    stream = _Stream(runner, sets, labels, order, seed)
    stream.run(weights, mode, gate, grouping or GroupSettings(), batch, progress, stop)

    experts = expert_predictions(suite) if split == "test" and corrupt is None else None
    scores: dict[str, Score] = {}
    answers: dict[str, Tensor] = {}
    more = iter(range(len(chosen), len(sets)))
    for i, (task, (_, truth, places)) in enumerate(zip(chosen, shown, strict=True)):
        features, rows = stream.features[i], stream.weights[i]
        if task.name in names:
            if head == "oracle":
                label = runner.routed.heads[task.name].logits(features).argmax(-1)
                answers[task.name] = torch.stack([torch.full_like(label, names.index(task.name)), label], 1)
            else:
                guess = likeliest(rows, stream.logits[i])
                answers[task.name] = answer(runner.routed.heads, features, guess, names, head)
            right = (answers[task.name][:, 0] == names.index(task.name)) & (answers[task.name][:, 1] == truth)
            kind = head
        else:
            made = class_mean_head(stream.features[next(more)], extra[task.name][1], len(task.classes))
            answers[task.name] = torch.stack([torch.full_like(truth, -1), made.logits(features).argmax(-1)], 1)
            right, kind = answers[task.name][:, 1] == truth, made.kind
        share = float(right.float().mean())
        scores[task.name] = Score(task.name in names, len(truth), share, bootstrap_interval(right, seed),
                                  normalised(share, expert_accuracy(experts, task, truth, places)), kind,
                                  task.title)  # fmt: skip
    seconds = round(time.perf_counter() - started, 3)
    evaluation = Evaluation(
        suite.name, _source(runner.routed), scores, average(scores, True), average(scores, False),
        _data_used(runner.routed, weights, head, list(extra), shots), seconds, split, limit,
        {name: rows[:, 1] for name, rows in answers.items()},
    )  # fmt: skip
    rows_of = {task.name: stream.weights[i] for i, task in enumerate(chosen)}
    groups = {t.name: stream.groups[i] for i, t in enumerate(chosen)} if stream.grouped else {}
    truths = {task.name: truth for task, (_, truth, _) in zip(chosen, shown, strict=True)}
    return RoutedEvaluation(
        evaluation, head, stream.mode, stream.why, names, _router_tables(names, rows_of, answers, truths),
        stream.seconds, stream.merges, runner.routed.bytes(), rows_of, groups, answers,
    )  # fmt: skip


class _Stream:
    """Sets of pictures as one stream through the runner, in a fixed order, and what came out set by set."""

    def __init__(self, runner: Runner, sets: list[Tensor], names: list[str], order: str, seed: int) -> None:
        self.runner, self.sets, self.names, self.order, self.seed = runner, sets, names, order, seed
        tasks = len(runner.routed.names)
        self.features = [torch.empty(len(images), runner.model.width) for images in sets]
        self.weights = [torch.empty(len(images), tasks) for images in sets]
        self.logits: list[Tensor | None] = [None for _ in sets]
        self.groups = [torch.zeros(len(images), dtype=torch.int64) for images in sets]
        self.seconds: dict[str, float] = {}
        self.merges, self.mode, self.why, self.grouped = 0, "", "", False

    def run(  # noqa: PLR0917
        self,
        weights: Any,
        mode: str,
        gate: Gate | None,
        grouping: GroupSettings | Centroids,
        batch: int,
        progress: Any,
        stop: Any,
    ) -> None:
        for members in self._same_size():
            owner = torch.cat([torch.full((len(self.sets[i]),), i) for i in members])
            place = torch.cat([torch.arange(len(self.sets[i])) for i in members])
            if self.order == "mixed":
                shuffled = torch.randperm(len(owner), generator=torch.Generator().manual_seed(self.seed))
                owner, place = owner[shuffled], place[shuffled]
            pictures = torch.empty((len(owner), *self.sets[members[0]].shape[1:]), dtype=torch.uint8)
            for i in members:
                pictures[owner == i] = self.sets[i][place[owner == i]]
            ran = self.runner.run(
                pictures, self._weights(weights, owner), mode, gate=gate, grouping=grouping, batch=batch,
                progress=progress, stop=stop,
            )  # fmt: skip
            self._keep(ran, members, owner, place)

    def _same_size(self) -> list[list[int]]:
        """Sets by the size of their pictures, for one stream holds pictures of one size."""
        found: dict[tuple[int, ...], list[int]] = {}
        for i, images in enumerate(self.sets):
            if len(images):
                found.setdefault(tuple(images.shape[1:]), []).append(i)
        return list(found.values())

    def _weights(self, weights: Any, owner: Tensor) -> Tensor | None:
        names = self.runner.routed.names
        if weights is None:
            return None
        if not isinstance(weights, str):
            return fixed(weights, len(owner), allow_negative=True)
        _known("weights", weights, ("oracle", "uniform"))
        if weights == "uniform":
            return uniform(len(owner), len(names))
        rows = torch.zeros(len(owner), len(names))  # a task without an expert gets the shared model alone
        for i, name in enumerate(self.names):
            if name in names:
                rows[owner == i] = one_hot(names.index(name), len(names))
        return rows

    def _keep(self, ran: Ran, members: list[int], owner: Tensor, place: Tensor) -> None:
        for i in members:
            mine = torch.nonzero(owner == i).flatten()
            at = place[mine]
            self.features[i][at] = ran.features[mine]
            self.weights[i][at] = ran.weights[mine]
            if ran.logits is not None:
                kept = torch.empty(len(at), ran.logits.shape[1])
                kept[at] = ran.logits[mine]
                self.logits[i] = kept
            if ran.grouping is not None:
                self.groups[i][at] = ran.grouping.index[mine]
                self.grouped = True
        for phase, seconds in ran.seconds.items():
            self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds
        self.merges += ran.merges
        self.mode, self.why = ran.mode, ran.why


def answer(heads: Mapping[str, Head], features: Tensor, guess: Tensor, names: Sequence[str], head: str) -> Tensor:
    """(task index, class index) int64 ``[N, 2]`` of features ``[N, width]`` without being told the task.

    ``router_argmax``: the class of the head of task ``guess`` ``[N]``. ``max_logit``: task and class of the highest
    logit of all heads.
    """
    _known("head", head, HEADS[1:])
    best = torch.full((len(features),), -torch.inf)
    out = torch.zeros(len(features), 2, dtype=torch.int64)
    for t, name in enumerate(names):
        top, label = heads[name].logits(features).max(-1)
        mine = guess == t if head == "router_argmax" else top > best
        best = torch.where(mine, top, best)
        out[mine] = torch.stack([torch.full_like(label, t), label], 1)[mine]
    return out


def likeliest(weights: Tensor, logits: Tensor | None) -> Tensor:
    """The task ``[N]`` that a router finds likeliest: its largest weight, or logit where the shared model answers
    alone."""
    found = weights.argmax(1)
    alone = (weights == 0).all(1)
    return torch.where(alone, logits.argmax(1), found) if logits is not None else found


def _router_tables(
    names: tuple[str, ...], rows: Mapping[str, Tensor], answers: Mapping[str, Tensor], truths: Mapping[str, Tensor]
) -> dict[str, Any]:
    confusion, weights, spread = {}, {}, {}
    right_routed: list[Tensor] = []
    right: list[Tensor] = []
    for task, found in rows.items():
        top = found.argmax(1)
        shares = torch.bincount(top, minlength=len(names)).float() / max(len(top), 1)
        confusion[task] = dict(zip(names, (round(v, 4) for v in shares.tolist()), strict=True))
        weights[task] = dict(zip(names, (round(v, 4) for v in found.mean(0).tolist()), strict=True))
        spread[task] = round(float(entropy(found.clamp(min=0)).mean()), 4)
        if task in names:
            right_routed.append(top == names.index(task))
            right.append((answers[task][:, 0] == names.index(task)) & (answers[task][:, 1] == truths[task]))
    routed, correct = (
        torch.cat([*right_routed, torch.zeros(0, dtype=torch.bool)]),
        torch.cat([*right, torch.zeros(0, dtype=torch.bool)]),
    )
    return {
        "accuracy": mean([float(r.float().mean()) for r in right_routed]),
        "confusion": confusion,
        "weights": weights,
        "entropy": spread,
        "when_right": float(correct[routed].float().mean()) if bool(routed.any()) else None,
        "when_wrong": float(correct[~routed].float().mean()) if bool((~routed).any()) else None,
    }


def _data_used(routed: RoutedModel, weights: Any, head: str, unseen: list[str], shots: int) -> str:
    parts = []
    if weights is None:
        parts.append(str(routed.settings.get("data_used") or "task-index labels for the router"))
    elif isinstance(weights, str) and weights == "oracle":
        parts.append("task id at inference for the weights")
    parts.append(SAID[head])
    if unseen:
        parts.append(f"{shots} labelled training images a class of {', '.join(unseen)} (told the task)")
    return "; ".join(parts)


def _source(routed: RoutedModel) -> str:
    return str(routed.settings.get("title") or "routed model")


def _runner(routed: Any, device: str) -> Runner:
    if isinstance(routed, Runner):
        return routed
    if not isinstance(routed, RoutedModel):
        from .store import load_routed

        routed = load_routed(routed)
    return Runner(routed, device=device)


def _known(what: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise RoutingError(f"There is no {what} {value!r}.{suggest(str(value), allowed)}")
