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
        """See :func:`mergelab.runs.training.compare.compare`."""
        from ..runs.training.compare import compare

        self.bench.warm(progress, stop)
        return compare(recipe, folder, beside=beside, resume=resume, device=self.bench.device, news=news,
                       progress=progress, stop=stop)  # fmt: skip

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
