"""Pictures without their labels, and the frozen heads that read them: what learning from unlabelled inputs gets."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import TaskError, suggest
from ..models import Model
from ..tasks import Head, Suite, Task, heads_for, zero_shot_head
from ..tasks.head import check_head, heads_fit

#: The splits whose pictures may be used; labels are never asked for.
SPLITS = ("val", "test")


@dataclass(frozen=True, eq=False)
class Unlabelled:
    """Pictures uint8 [N, H, W, 3] of one task without their labels, from ``split``, and the head that reads them."""

    task: str
    images: Tensor
    head: Head
    split: str = "val"


def unlabelled(
    model: Model, suite: Suite, names: Sequence[str], *, split: str = "val", examples: int | None = None, seed: int = 0
) -> tuple[Unlabelled, ...]:
    """At most ``examples`` pictures of every task called so, drawn without a look at the labels, with its frozen head.

    Raises TaskError when a name has no task, a task no pictures in ``split`` (``val`` or ``test``), or no head.
    """
    if split not in SPLITS:
        raise TaskError(f"Unlabelled inputs come from {' or '.join(map(repr, SPLITS))}, not {split!r}.")
    tasks = [task_of(suite, name) for name in names]
    heads = frozen_heads(model, suite, tasks)
    out = []
    for task in tasks:
        if not task.has(split):
            raise TaskError(f"The task {task.name} has no {split} pictures to learn from; take another split or suite.")
        images = task.split(split)[0]
        if not len(images):
            raise TaskError(f"The split {split} of {task.name} is empty; take another split or suite.")
        places = drawn(len(images), examples, seed, f"{task.name}/{split}")
        out.append(Unlabelled(task.name, images[places], heads[task.name], split))
    return tuple(out)


def task_of(suite: Suite, name: str) -> Task:
    """The task of a model, found by the model's name."""
    if name not in suite.names:
        raise TaskError(
            f"The model {name!r} has no task of its name in the suite {suite.name}; give the model the name of its "
            f"task (key 'name').{suggest(name, suite.names)}"
        )
    return suite[name]


def frozen_heads(model: Model, suite: Suite, tasks: Sequence[Task]) -> dict[str, Head]:
    """The head of every task, as :func:`known_heads` finds them; TaskError for a task that has none."""
    out = known_heads(model, suite, tasks)
    for task in tasks:
        if task.name not in out:
            raise TaskError(
                f"The task {task.name} has no trained head in the suite {suite.name} and {model.name} cannot embed "
                "class names, so there are no outputs to look at. Use a zoo's suite, or a model with a text side."
            )
    return out


def known_heads(model: Model, suite: Suite, tasks: Sequence[Task]) -> dict[str, Head]:
    """Heads by task: trained with its expert where the suite's zoo has it, else zero-shot from class names if possible.

    Raises TaskError when a head does not fit the model or its task.
    """
    trained = heads_for(suite)
    fit = not model.has_text or heads_fit(suite, model)
    out: dict[str, Head] = {}
    for task in tasks:
        if fit and task.name in trained:
            out[task.name] = check_head(trained[task.name], task, model.width, model.name)
        elif model.has_text:
            out[task.name] = check_head(zero_shot_head(model, task), task, model.width, model.name)
    return out


def drawn(count: int, examples: int | None, seed: int, what: str) -> Tensor:
    """Sorted places of ``examples`` out of ``count`` items (all for None); a smaller draw is part of a larger one."""
    if examples is None or examples >= count:
        return torch.arange(count)
    if examples < 1:
        raise TaskError(f"Give at least one example a task, not {examples}.")
    order = np.random.RandomState((zlib.crc32(what.encode()) + seed) % 2**32).permutation(count)
    return torch.from_numpy(np.sort(order[:examples]))


class Draws:
    """Random batches of one task: every item once before any comes again, and never twice in one batch."""

    def __init__(self, count: int, batch: int, seed: int, what: str) -> None:
        self.batch = min(count, batch)
        self._count = count
        self._rng = np.random.RandomState((zlib.crc32(f"batches/{what}".encode()) + seed) % 2**32)
        self._left = np.empty(0, dtype=np.int64)

    def next(self) -> Tensor:
        """Places int64 [batch] of the next batch."""
        if len(self._left) < self.batch:
            self._left = self._rng.permutation(self._count)
        taken, self._left = self._left[: self.batch], self._left[self.batch :]
        return torch.from_numpy(np.ascontiguousarray(taken))


def data_used(counts: Mapping[str, int], split: str) -> str:
    """In words, which pictures were used, and that test pictures make a result transductive."""
    sizes = sorted(set(counts.values()))
    many = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    said = f"{many} unlabelled {split} pictures a task of {', '.join(counts)}"
    return f"{said} (transductive: the split that results are measured on)" if split == "test" else said
