"""Statistics of (IA)³ vectors as parameters of their own (full blocks; Tam et al. 2024, their setting for adapters)."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from ..checkpoints import Checkpoint, load
from ..checkpoints.adapters import WEIGHTS, AdapterCheckpoint
from ..checkpoints.reader import FileCheckpoint
from ..errors import StatisticsError
from ..models import build
from ..statistics import TaskStatistics
from ..tasks import Head, Task
from .suite import collect
from .wanted import BLOCK_LIMIT

#: How vectors are called in an adapter's file.
PREFIX, ENDING = "base_model.model.", ".ia3_l"


def vectors(source: str | Path) -> Checkpoint:
    """The vectors of an (IA)³ adapter as a checkpoint of their own, by their names in its file.

    They can be merged as they are (with a base of ones: 1 changes nothing), with the statistics of
    :func:`collect_vectors`. Raises StatisticsError when the source is no (IA)³ adapter.
    """
    return _adapter(source)[1]


def collect_vectors(
    source: str | Path,
    task: Task,
    head: Head,
    *,
    kinds: Collection[str] = ("block", "diag"),
    device: str | torch.device = "auto",
    block_limit: int = BLOCK_LIMIT,
    **options: Any,
) -> TaskStatistics:
    """Statistics of the vectors of one (IA)³ adapter, under their names in its ``adapter_model.safetensors``.

    ``source``: the adapter's folder, or anything :func:`mergelab.load` finds it by; what these statistics belong to is
    :func:`vectors` of it. ``options`` as :func:`collect` takes them.

    Raises StatisticsError when the source is no (IA)³ adapter or its vectors do not fit the base's layers.
    """
    adapter, stored = _adapter(source)
    settings = adapter.settings
    model = build(adapter.base, device=device)
    own = _insert(model.module, settings)
    spelling = {f"{name}.default": f"{PREFIX}{name}" for name in own}
    missing = sorted(set(spelling.values()) ^ {name for name in stored if name.endswith(ENDING)})
    if missing:
        raise StatisticsError(
            f"{adapter.name}: the vector {missing[0]!r} is not both in the adapter and among the layers of its base."
        )
    parameters = dict(model.module.named_parameters())
    for name, theirs in spelling.items():
        parameters[name].data.copy_(stored[theirs])
    found = collect(
        model, task, head, kinds=kinds, names=list(spelling), block_limit=block_limit, device=device, **options
    )
    blocks = {}
    for name in found.names:
        block = found.block(name)
        assert block is not None
        blocks[spelling[name]] = block
    return TaskStatistics(
        found.task, blocks, name=adapter.name, weights_hash=stored.weights_hash, split=found.split,
        examples=found.examples, fisher=found.fisher, seed=found.seed, suite=found.suite,
        meta={**found.meta, "source": str(stored.source)[:500]}, skipped=found.skipped,
    )  # fmt: skip


def _adapter(source: str | Path) -> tuple[AdapterCheckpoint, Checkpoint]:
    adapter = load(source)
    if not isinstance(adapter, AdapterCheckpoint) or adapter.settings.get("peft_type") != "IA3":
        kind = adapter.settings.get("peft_type") if isinstance(adapter, AdapterCheckpoint) else "whole model"
        raise StatisticsError(f"{adapter.name} is no (IA)³ adapter but a {kind}: collect from it as a dense expert.")
    assert adapter.folder is not None
    path = adapter.folder / WEIGHTS
    return adapter, FileCheckpoint({WEIGHTS: path}, name=adapter.name, source=str(path), folder=adapter.folder)


def _insert(module: torch.nn.Module, settings: dict[str, Any]) -> list[str]:
    """Put (IA)³ layers into a module, all neutral; names of their vectors without the adapter's own name."""
    from peft import IA3Config, inject_adapter_in_model

    known = ("target_modules", "feedforward_modules", "fan_in_fan_out", "exclude_modules")
    config = IA3Config(**{key: settings[key] for key in known if settings.get(key) is not None})
    inject_adapter_in_model(config, module)
    return [
        name.removesuffix(".default") for name, _ in module.named_parameters() if name.endswith(f"{ENDING}.default")
    ]
