"""Statistics of (IA)³ vectors as parameters of their own (full blocks; Tam et al. 2024, their setting for adapters)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..checkpoints import Checkpoint, Vectors, adapter_vectors
from ..errors import StatisticsError
from ..models import Model, build
from ..statistics import TaskStatistics
from ..tasks import Head, Task
from .suite import collect
from .wanted import BLOCK_LIMIT


@dataclass(frozen=True)
class Inserted:
    """The base of an (IA)³ adapter with its vectors as parameters. ``spelling``: parameter -> name in the file."""

    vectors: Vectors
    model: Model
    spelling: Mapping[str, str]


def collect_vectors(
    source: str | Path | Checkpoint,
    task: Task,
    head: Head,
    *,
    kinds: Collection[str] = ("block", "diag"),
    device: str | torch.device = "auto",
    block_limit: int = BLOCK_LIMIT,
    **options: Any,
) -> TaskStatistics:
    """Statistics of the vectors of one (IA)³ adapter, under their names in its ``adapter_model.safetensors``.

    ``source``: the adapter as :func:`mergelab.load` takes it; the vectors are
    :func:`mergelab.checkpoints.adapter_vectors` of it. ``options`` as :func:`collect` takes them.

    Raises CheckpointError when the source is no (IA)³ adapter, StatisticsError when ``kinds`` has Grams, which vectors
    have not.
    """
    made = inserted(source, device)
    found = collect(
        made.model, task, head, kinds=kinds, names=list(made.spelling), block_limit=block_limit, device=device,
        **options,
    )  # fmt: skip
    blocks = {}
    for name in found.names:
        block = found.block(name)
        assert block is not None
        blocks[made.spelling[name]] = block
    vectors = made.vectors
    return TaskStatistics(
        found.task, blocks, name=vectors.name, weights_hash=vectors.weights_hash, split=found.split,
        examples=found.examples, fisher=found.fisher, seed=found.seed, suite=found.suite,
        meta={**found.meta, "source": str(vectors.source)[:500], "space": "adapter"}, skipped=found.skipped,
    )  # fmt: skip


def inserted(source: str | Path | Checkpoint, device: str | torch.device = "auto") -> Inserted:
    """The model that an (IA)³ adapter makes of its base, the vectors being parameters of their own."""
    vectors = source if isinstance(source, Vectors) else adapter_vectors(source)
    model = build(vectors.adapter.base, device=device)
    layers = vectors.layers()
    own = model.own_names(weight for weight, _ in layers.values())
    lost = next((name for name, (weight, _) in layers.items() if weight not in own), None)
    if lost is not None:
        raise StatisticsError(f"{vectors.name}: the vector {lost!r} scales no layer of the model that its base makes.")
    places = {name: own[weight].removesuffix(".weight") for name, (weight, _) in layers.items()}
    turned = [places[name] for name, (_, inputs) in layers.items() if inputs]
    _insert(model.module, list(places.values()), turned, vectors.adapter.settings)
    spelling = {f"{place}.ia3_l.default": name for name, place in places.items()}
    parameters = dict(model.module.named_parameters())
    for name, theirs in spelling.items():
        parameters[name].data.copy_(vectors[theirs])
    return Inserted(vectors, model, spelling)


def _insert(module: torch.nn.Module, layers: list[str], feedforward: list[str], settings: Mapping[str, Any]) -> None:
    """Put neutral (IA)³ vectors onto layers of a module."""
    from peft import IA3Config, inject_adapter_in_model

    turned = bool(settings.get("fan_in_fan_out"))
    config = IA3Config(target_modules=layers, feedforward_modules=feedforward, fan_in_fan_out=turned)
    inject_adapter_in_model(config, module)
