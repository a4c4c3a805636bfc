"""``mergelab.merge``: a merge in one call."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .engine import merge_to_memory, plan
from .methods import get
from .progress import Progress, Stop

if TYPE_CHECKING:
    from torch import Tensor

    from .checkpoints import Checkpoint

    Source = str | Path | Mapping[str, Tensor] | Checkpoint


def merge(
    method: str,
    models: Mapping[str, Source] | Sequence[Source],
    base: Source | None = None,
    seed: int = 0,
    *,
    dtype: str | None = None,
    out_dtype: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
    statistics: str | Path | Mapping[str, Any] | None = None,
    init: Any = None,
    learned: Mapping[str, Sequence[float]] | None = None,
    space: str | None = None,
    **parameters: Any,
) -> dict[str, Tensor]:
    """Merge models in memory and return the merged state dict (CPU tensors; tied names share one).

    ``models`` is a mapping of names to models or a sequence of them; a model, like ``base``, is a state dict, a source
    such as ``"zoo:starter/mnist"`` or a path. Parameters are the method's own (``mergelab.methods.get(method)`` lists
    them); one that exists per model is a number for all, a sequence in the models' order, or a mapping by model name.
    ``lambda`` is written ``lambda_``. Computes in float32 (``dtype="float64"`` for more); each tensor keeps the base's
    dtype unless ``dtype`` or ``out_dtype`` says otherwise. Methods that need them take ``statistics`` (a folder of
    them, or a mapping of model names), ``init`` (a method's name, ``"base"``, ``"average"``, ``{"merge_method": …,
    "parameters": …}`` or a state dict to start from) and ``learned`` coefficients; see :func:`mergelab.engine.plan`.
    ``space="adapter"`` merges the vectors of (IA)³ adapters and gives merged vectors.
    Raises :class:`~mergelab.errors.MergeLabError` saying what does not fit, and gives a Python warning for statistics
    that were collected in different ways (Fisher estimates, splits, numbers of examples).

    >>> mergelab.merge("task_arithmetic", {"a": sd_a, "b": sd_b}, base=sd0, lambda_=0.4, weight={"a": 1.0, "b": 0.5})
    """
    if space is not None and any(parameter.name == "space" for parameter in get(method).parameters):
        parameters["space"], space = space, None  # slerp has a parameter of this name
    planned = plan(
        method, models, base, parameters, dtype=dtype, out_dtype=out_dtype, seed=seed,
        statistics=statistics, init=init, learned=learned, space=space,
    )  # fmt: skip
    for warning in planned.warnings:  # the command line prints them; a state dict has no place for them
        warnings.warn(warning, UserWarning, stacklevel=2)
    return merge_to_memory(planned, threads=threads, device=device, progress=progress, stop=stop)
