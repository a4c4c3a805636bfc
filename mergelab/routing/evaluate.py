"""Measuring a routed model: which head answers is said in every score, and what the router did is shown beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import RoutingError
from ..progress import Progress, Stop
from ..tasks import Evaluation, Head, Score, Suite, bootstrap_interval, class_mean_head, load_suite
from ..tasks.evaluate import SHOTS, average, expert_accuracy, expert_predictions, items, support
from ..tasks.metrics import normalised
from .gate import Gate
from .groups import Centroids
from .inputs import Inputs, known
from .modes import BATCH, GroupSettings, Runner
from .routed import RoutedModel
from .router_tables import router_tables

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
    known("head", head, HEADS)
    known("order", order, ("mixed", "sorted"))
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
    stream = Inputs(runner, sets, labels, order, seed)
    stream.run(weights, mode, gate, grouping or GroupSettings(), batch, progress, stop)

    experts = expert_predictions(suite) if split == "test" and corrupt is None else None
    scores: dict[str, Score] = {}
    answers: dict[str, Tensor] = {}
    chosen_experts: dict[str, Tensor] = {}
    rights: dict[str, Tensor] = {}
    for i, (task, (_, truth, places)) in enumerate(zip(chosen, shown, strict=True)):
        name, features = task.name, stream.features[i]
        chosen_experts[name] = likeliest(stream.weights[i], stream.logits[i])
        if name in names:
            answers[name] = answer(runner.routed.heads, features, chosen_experts[name], names, head, name)
            rights[name], kind = (answers[name] == torch.stack([torch.full_like(truth, names.index(name)), truth], 1)
                                  ).all(1), head  # fmt: skip
        else:
            made = class_mean_head(stream.features[labels.index(name, len(chosen))], extra[name][1], len(task.classes))
            label = made.logits(features).argmax(-1)
            answers[name] = torch.stack([torch.full_like(label, -1), label], 1)
            rights[name], kind = label == truth, made.kind
        share = float(rights[name].float().mean())
        expert = expert_accuracy(experts, task, truth, places)
        scores[name] = Score(name in names, len(truth), share, bootstrap_interval(rights[name], seed),
                             normalised(share, expert), kind, task.title)  # fmt: skip
    seconds = round(time.perf_counter() - started, 3)
    evaluation = Evaluation(
        suite.name, _source(runner.routed), scores, average(scores, True), average(scores, False),
        _data_used(runner.routed, weights, head, list(extra), shots), seconds, split, limit,
        {name: rows[:, 1] for name, rows in answers.items()},
    )  # fmt: skip
    rows_of = {task.name: stream.weights[i] for i, task in enumerate(chosen)}
    groups = {t.name: stream.groups[i] for i, t in enumerate(chosen)} if stream.grouped else {}
    tables = router_tables(names, rows_of, chosen_experts, rights)
    return RoutedEvaluation(
        evaluation, head, stream.mode, stream.why, names, tables, stream.seconds, stream.merges,
        runner.routed.bytes(), rows_of, groups, answers,
    )  # fmt: skip


def answer(  # noqa: PLR0917
    heads: Mapping[str, Head],
    features: Tensor,
    guess: Tensor,
    names: Sequence[str],
    head: str,
    task: str | None = None,
) -> Tensor:
    """(task index, class index) int64 ``[N, 2]`` of features ``[N, width]`` under a head policy.

    ``router_argmax``: the class of the head of task ``guess`` ``[N]``. ``max_logit``: task and class of the highest
    logit of all heads. ``oracle``: the class of the head of ``task``, which is told.
    """
    known("head", head, HEADS if task is not None else HEADS[1:])
    best = torch.full((len(features),), -torch.inf)
    out = torch.full((len(features), 2), -1, dtype=torch.int64)
    for t, name in enumerate(names):
        top, label = heads[name].logits(features).max(-1)
        if head == "oracle":
            mine = torch.full_like(label, name == task, dtype=torch.bool)
        else:
            mine = guess == t if head == "router_argmax" else top > best
        best = torch.where(mine, top, best)
        out[mine] = torch.stack([torch.full_like(label, t), label], 1)[mine]
    return out


def likeliest(weights: Tensor, logits: Tensor | None) -> Tensor:
    """The task ``[N]`` that a router finds likeliest: its largest weight, or logit where the shared model answers
    alone; -1 where all weights are 0 and there are no logits."""
    alone = (weights == 0).all(1)
    return torch.where(alone, logits.argmax(1) if logits is not None else -1, weights.argmax(1))


def _data_used(routed: RoutedModel, weights: Any, head: str, unseen: list[str], shots: int) -> str:
    parts = []
    if weights is None:
        parts.append(str(routed.settings.get("data_used") or "task-index labels for the router"))
    elif isinstance(weights, str) and weights == "oracle":
        parts.append("task id at inference for the weights")
    if weights is not None and routed.settings.get("shared_data_used"):
        parts.append(f"for the shared model: {routed.settings['shared_data_used']}")
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
