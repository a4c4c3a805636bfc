"""What a zoo's base and experts score on any subset of the test items, from the predictions that its builder kept."""

from __future__ import annotations

import torch

from ..errors import TaskError
from ..tasks import Average, Evaluation, Score, Suite, accuracy, bootstrap_interval, subset_indices
from ..tasks.pack import Pack


def references(suite: Suite, per_task: int | None = None) -> dict[str, Evaluation]:
    """``{"base": …, "experts": …}`` on the seen tasks, on the same ``per_task`` items that a live evaluation looks at.

    The base is measured under each expert's head, an expert on its own task, so ``experts`` is normalised to 1. Raises
    :class:`TaskError` where the zoo keeps no predictions.
    """
    path = suite.zoo / "predictions.npz" if suite.zoo else None
    if path is None or not path.is_file():
        raise TaskError(f"The suite {suite.name!r} comes without its experts' predictions; build its zoo again.")
    kept = Pack(path)
    shares = {who: _scores(kept, suite, who, per_task) for who in ("base", "expert")}
    scored: dict[str, dict[str, Score]] = {"base": {}, "experts": {}}
    for name, (n, right, interval) in shares["expert"].items():
        scored["experts"][name] = Score(True, n, right, interval, 1.0 if right else None)
        if name in shares["base"]:
            _, base, around = shares["base"][name]
            scored["base"][name] = Score(True, n, base, around, base / right if right else None)
    return {who: _evaluation(suite, who, scores, per_task) for who, scores in scored.items()}


def _scores(
    kept: Pack, suite: Suite, who: str, per_task: int | None
) -> dict[str, tuple[int, float, tuple[float, float]]]:
    found = {}
    for task in suite.tasks:
        key = f"{who}/{task.name}"
        if not task.seen or key not in kept:
            continue
        _, labels = task.split("test")
        predicted = torch.from_numpy(kept.integers(key))
        if per_task is not None and per_task < len(labels):
            places = subset_indices(task, "test", per_task)
            labels, predicted = labels[places], predicted[places]
        found[task.name] = (len(labels), accuracy(predicted, labels), bootstrap_interval(predicted == labels))
    return found


def _evaluation(suite: Suite, who: str, scores: dict[str, Score], per_task: int | None) -> Evaluation:
    def mean(values: list[float | None]) -> float | None:
        kept = [value for value in values if value is not None]
        return sum(kept) / len(kept) if kept else None

    seen = Average(mean([s.accuracy for s in scores.values()]), mean([s.normalised for s in scores.values()]))
    return Evaluation(
        suite.name,
        who,
        scores,
        seen,
        Average(None, None),
        "heads trained with labels of all tasks",
        0.0,
        "test",
        per_task,
    )
