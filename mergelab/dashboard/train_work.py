"""The heavy calls behind the Train tab, in terms of plain values and of the tensors that a run hands over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import TaskError
from .work import test_picture

if TYPE_CHECKING:
    from torch import Tensor

    from ..training.recipe import TrainRecipe

#: Bytes that the rounds of a run may take on disk for a look at its weights; beyond, only the last round is kept.
_MOST_KEPT = 2 << 30


class TrainBench:
    """Training from the base of a bench on the tasks of its suite."""

    def __init__(self, bench: Any) -> None:
        self.bench = bench

    def estimate(self, recipe: TrainRecipe, beside: Sequence[str]) -> dict[str, Any]:
        """See :func:`mergelab.runs.training.estimate`."""
        from ..runs.training import estimate

        self.bench.warm()  # what a visitor will need anyway; two threads that load the first models trip each other up
        return estimate(recipe, beside=beside, device=self.bench.device)

    def compare(
        self, recipe: TrainRecipe, folder: Path, beside: Sequence[str], *, resume: bool, news: Any, progress: Any,
        stop: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """See :func:`mergelab.runs.training.compare.compare`; every round is kept where that takes little room."""
        from ..runs.training.compare import compare
        from ..runs.training.costs import rounds_bytes

        self.bench.warm(progress, stop)
        own = self.bench.model().weights.tensors.values()
        size = sum(tensor.numel() * tensor.element_size() for tensor in own)
        keep = rounds_bytes(recipe, beside, size) <= _MOST_KEPT
        return compare(recipe, folder, beside=beside, resume=resume, device=self.bench.device, keep_rounds=keep,
                       news=news, progress=progress, stop=stop)  # fmt: skip

    def look(self, folder: Path, *, told: Any, progress: Any, stop: Any) -> dict[str, Any]:
        """See :func:`mergelab.runs.training.look.look`."""
        from ..runs.training.look import look
        from .train_look_facts import LIMIT, STEPS

        return look(folder, limit=LIMIT, steps=STEPS, device=self.bench.device, told=told, progress=progress, stop=stop)

    def theorem(self, recipe: TrainRecipe, *, progress: Any, stop: Any, **options: Any) -> dict[str, Any]:
        """See :func:`mergelab.runs.training.theorem.theorem_lab`."""
        from ..runs.training.theorem import theorem_lab

        self.bench.warm(progress, stop)
        return theorem_lab(recipe, device=self.bench.device, progress=progress, stop=stop, **options)

    def evaluate(
        self, state: Mapping[str, Tensor], per_task: int | None, progress: Any = None, stop: Any = None
    ) -> dict[str, Any]:
        """The current model on the items of every other result; unseen tasks too where ``per_task`` is None, which
        stands for whole test sets."""
        from ..tasks import evaluate

        found = evaluate(
            self.bench.model(), self.bench.suite, state=self._whole(state), limit=per_task, unseen=per_task is None,
            progress=progress, stop=stop,
        )  # fmt: skip
        return found.to_dict()

    def predict(self, state: Mapping[str, Tensor], picture: Mapping[str, Any]) -> dict[str, Any]:
        """``{"classes", "probabilities"}`` of the current model for a picture (see
        :func:`mergelab.dashboard.work.predict`)."""
        from ..tasks import heads_for, probabilities

        task = picture["task"]
        heads = heads_for(self.bench.suite)
        if task not in heads:
            raise TaskError(f"The task {task!r} has no head, so nothing can be predicted for it.")
        row = probabilities(self.bench.model(), self.pixels(picture)[None], heads[task], state=self._whole(state))[0]
        return {"classes": list(self.bench.task(task).classes), "probabilities": [float(value) for value in row]}

    def pixels(self, picture: Mapping[str, Any]) -> np.ndarray:
        """The picture ``[H, W, 3]`` uint8 that a visitor has chosen."""
        if picture.get("pixels") is not None:
            return np.asarray(picture["pixels"], dtype=np.uint8)
        if picture.get("index") is not None:
            return test_picture(self.bench, picture["task"], picture["index"])[0]
        samples = self.bench.samples(picture["task"])
        return np.asarray(samples[picture.get("place", 0) % len(samples)][1])

    def _whole(self, state: Mapping[str, Tensor]) -> Any:
        from ..runs.training.watch import whole

        return whole(self.bench.model(), state)
