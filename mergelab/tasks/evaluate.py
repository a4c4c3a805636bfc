"""Evaluation: a model on every task of a suite."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import TaskError
from ..models import BATCH, Model, Weights, build
from ..progress import Progress, Stop
from .head import (
    CLASS_MEAN,
    TRAINED,
    ZERO_SHOT,
    Head,
    check_head,
    class_mean_head,
    given,
    heads_fit,
    heads_for,
    zero_shot_head,
)
from .metrics import accuracy, bootstrap_interval, mean, normalised
from .pack import Pack
from .results import Average, Evaluation, Score
from .suite import Suite, Task, balanced, load_suite, subset_indices

#: Labelled training pictures per class that make a class mean, where a task has no head.
SHOTS = 20


def evaluate(
    model: Any,
    suite: Suite | str | Path = "starter",
    *,
    split: str = "test",
    limit: int | None = None,
    tasks: Iterable[str] | None = None,
    state: Mapping[str, Tensor] | Weights | None = None,
    heads: Mapping[str, Head] | str | None = None,
    unseen: bool = True,
    seed: int = 0,
    batch: int = BATCH,
    device: str = "auto",
    shots: int = SHOTS,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Evaluation:
    """Measure a model on the tasks of a suite.

    Args:
        model: a source (anything :func:`mergelab.load` takes), a Checkpoint, a built Model, or ``(model, state)``.
        suite: a suite, a zoo's name, or a folder (see :func:`load_suite`).
        split: ``test``, ``val`` or ``train``.
        limit: at most so many items per task, a fixed subset with the classes as equal as they can be.
        tasks: only these, by name.
        state: weights to use instead of the model's own, for this call only; a plain state dict is not copied.
        heads: heads by task, or one of ``trained``, ``zero-shot``, ``class mean``; by default the heads trained with
            the suite's experts if the model is of their family, else zero-shot heads if it has a text side, else (and
            for unseen tasks) the nearest class mean of ``shots`` labelled training pictures per class.
        unseen: whether to measure the tasks that have no expert.
        seed: of subsets, support pictures and intervals.

    ``normalised`` is the ratio to the expert on the very same items (from the zoo's predictions.npz, test split only).

    Raises:
        TaskError: a head is missing or does not fit, a task or split is not there.
        CheckpointError: the weights do not fit the model, or give features that are not finite.
    """
    started = time.perf_counter()
    suite = load_suite(suite)
    chosen = [task for task in suite.pick(tasks) if unseen or task.seen]
    if not chosen:
        raise TaskError(f"The suite {suite.name} leaves no task to measure.")
    built, state, source = _resolve(model, state, device)
    weights = state if isinstance(state, Weights) else built.weights if state is None else built.prepare(state)
    plans = _choose_heads(heads, suite, chosen, built, weights)
    shown = [items(task, split, limit, seed) for task in chosen]
    shots_of = [None if plans[task.name] is not None else support(task, split, shots, seed) for task in chosen]

    groups = [images for images, _, _ in shown] + [s[0] for s in shots_of if s is not None]
    features = built.encode_many(groups, batch, progress, stop, weights=weights)
    extra = iter(features[len(chosen) :])
    experts = expert_predictions(suite) if split == "test" else None
    scores: dict[str, Score] = {}
    predictions: dict[str, Tensor] = {}
    for task, (_, labels, places), shot, found in zip(chosen, shown, shots_of, features, strict=False):
        head = plans[task.name]
        if head is None:
            assert shot is not None
            head = class_mean_head(next(extra), shot[1], len(task.classes))
        predicted = head.logits(found).argmax(-1)
        expert = expert_accuracy(experts, task, labels, places)
        share = accuracy(predicted, labels)
        scores[task.name] = Score(task.seen, len(labels), share, bootstrap_interval(predicted == labels, seed),
                                  normalised(share, expert), head.kind, task.title)  # fmt: skip
        predictions[task.name] = predicted
    return Evaluation(suite.name, source, scores, average(scores, True), average(scores, False),
                      data_used(scores, shots), round(time.perf_counter() - started, 3), split, limit,
                      predictions)  # fmt: skip


def _resolve(model: Any, state: Any, device: str) -> tuple[Model, Any, str]:
    """The model, the weights to use, and what to call them."""
    if isinstance(model, tuple):
        if len(model) != 2 or state is not None:
            raise TaskError("Give the model and its weights either as (model, state) or as model and state=.")
        model, state = model
    if isinstance(model, Model):
        return model, state, str(getattr(state, "source", None) or model.name)
    built = build(model, device=device)
    source = model if isinstance(model, (str, Path)) else getattr(model, "source", built.name)
    return built, state, str(source)


def _choose_heads(
    heads: Mapping[str, Head] | str | None, suite: Suite, tasks: list[Task], model: Model, weights: Weights
) -> dict[str, Head | None]:
    """A head per task; None stands for class means, which need features first."""
    if isinstance(heads, Mapping):
        given(dict(heads), tasks)
        chosen: dict[str, Head | None] = {t.name: heads.get(t.name) for t in tasks}
        for task in tasks:
            if task.seen and chosen[task.name] is None:
                raise TaskError(f"There is no head for the task {task.name} among those given.")
    elif heads not in (None, TRAINED, ZERO_SHOT, CLASS_MEAN):
        raise TaskError(f"heads must be {TRAINED!r}, {ZERO_SHOT!r}, {CLASS_MEAN!r} or heads by task, found {heads!r}.")
    elif heads == CLASS_MEAN:
        return dict.fromkeys(task.name for task in tasks)
    elif heads == ZERO_SHOT:
        chosen = {task.name: zero_shot_head(model, task, weights=weights) for task in tasks}
    else:
        chosen = _automatic(suite, tasks, model, weights, must=heads == TRAINED)
    for task in tasks:
        head = chosen[task.name]
        if head is not None:
            check_head(head, task, model.width, model.name)
    return chosen


def _automatic(suite: Suite, tasks: list[Task], model: Model, weights: Weights, must: bool) -> dict[str, Head | None]:
    trained = heads_for(suite)
    if trained and (must or not model.has_text or heads_fit(suite, model)):
        for task in tasks:
            if task.seen and task.name not in trained:
                raise TaskError(f"The zoo of the suite {suite.name} has no head for its task {task.name}.")
        spare = model.has_text and not must
        return {
            t.name: trained[t.name]
            if t.name in trained
            else (zero_shot_head(model, t, weights=weights) if spare else None)
            for t in tasks
        }
    if must:
        raise TaskError(f"The suite {suite.name} belongs to no zoo, so there are no trained heads for it.")
    if model.has_text:
        return {task.name: zero_shot_head(model, task, weights=weights) for task in tasks}
    return dict.fromkeys(task.name for task in tasks)


def items(task: Task, split: str, limit: int | None, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures, labels and their places in the split."""
    images, labels = task.split(split)
    if not len(labels):
        raise TaskError(f"The split {split} of {task.name} is empty.")
    if limit is None or limit >= len(labels):
        return images, labels, torch.arange(len(labels))
    places = subset_indices(task, split, limit, seed)
    return images[places], labels[places], places


def support(task: Task, split: str, shots: int, seed: int) -> tuple[Tensor, Tensor]:
    """``shots`` labelled pictures per class from the training split, for class means."""
    if split == "train":
        raise TaskError(
            f"{task.name} has no head; class means are made from its training pictures: measure test or val."
        )
    images, labels = task.split("train")
    places = [
        mine[balanced(torch.zeros(len(mine), dtype=torch.int64), shots, seed)]
        for c in range(len(task.classes))
        if len(mine := torch.nonzero(labels == c).flatten())
    ]
    chosen = torch.cat(places) if places else torch.empty(0, dtype=torch.int64)
    return images[chosen], labels[chosen]


def expert_predictions(suite: Suite) -> Pack | None:
    """The experts' predicted labels on the test items, kept by the zoo's builder."""
    path = suite.zoo / "predictions.npz" if suite.zoo is not None else None
    return Pack(path) if path is not None and path.is_file() else None


def expert_accuracy(kept: Pack | None, task: Task, labels: Tensor, places: Tensor) -> float | None:
    key = f"expert/{task.name}"
    if kept is None or key not in kept:
        return None
    predicted = torch.from_numpy(kept.integers(key))
    total = len(task.split("test")[1])
    if len(predicted) != total:
        raise TaskError(
            f"predictions.npz: {key!r} has {len(predicted)} predictions, the test split of {task.name} has {total} "
            "items. Build the zoo again."
        )
    return accuracy(predicted[places], labels)


def average(scores: Mapping[str, Score], seen: bool) -> Average:
    group = [score for score in scores.values() if score.seen == seen]
    return Average(mean([s.accuracy for s in group]), mean([s.normalised for s in group]))


def data_used(scores: Mapping[str, Score], shots: int) -> str:
    """Which data the heads were made from, per kind of head."""
    said = {
        TRAINED: "heads trained with labels of {}",
        ZERO_SHOT: "class names of {}",
        CLASS_MEAN: f"{shots} labelled training images a class of {{}}",
    }
    parts = []
    for kind in (TRAINED, ZERO_SHOT, CLASS_MEAN, "given"):
        names = [name for name, score in scores.items() if score.head == kind]
        if names:
            who = "all tasks" if len(names) == len(scores) else ", ".join(names)
            parts.append(said.get(kind, "heads given for {}").format(who))
    return "; ".join(parts)
