"""Do the statistics fit the tensors of a merge, and its adapters each other? From headers, before anything is read."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from ..errors import MethodError, StatisticsError
from ..statistics import TaskStatistics
from ..statistics.block import pieces_of
from ..statistics.checks import check_counts, check_shape, check_sizes
from .structure import FLOATS, Item

if TYPE_CHECKING:
    from .plan import Plan

_FACTOR = re.compile(r"\.lora_(?:A|B|embedding_A|embedding_B)(?:\.|$)")


def check_fit(plan: Plan, chosen: Mapping[str, TaskStatistics], kinds: Collection[str]) -> None:
    """Raise for statistics that cannot be those of the plan's tensors. ``chosen``: model name -> its statistics.

    StatisticsError, naming the file (or task), the model, the tensor and both values: a matrix of another size, another
    shape noted by the collector, nothing behind an average that ``kinds`` read, layouts that differ between models
    (kernels turn all models' tensors one way). MethodError: a tensor that would be solved for is stored as integers,
    which are copied and not merged, so that the statistics would be passed over without a word.
    """
    for item in plan.items:
        layouts: dict[str, str] = {}
        for name, s in chosen.items():
            entry = s.entries.get(item.name)
            if entry is None:
                continue
            who = f"{s.where} ({name}), tensor {item.name!r}"
            if item.dtype not in FLOATS:
                raise _integers(plan, item)
            check_sizes(entry.pieces, entry.layout, item.shape, who)
            check_shape(entry.shape, item.shape, who)
            check_counts(pieces_of(kinds, entry.pieces), entry.rows, entry.examples, who)
            if entry.layout:
                layouts[name] = entry.layout
        _one_layout(chosen, item, layouts)


def _integers(plan: Plan, item: Item) -> MethodError:
    return MethodError(
        f"Tensor {item.name!r} is stored as {item.dtype} in every model, and {plan.method.name!r} solves for it in "
        f"floating point; convert the checkpoints to one of {', '.join(FLOATS)} (quantised weights cannot be merged)."
    )


def _one_layout(chosen: Mapping[str, TaskStatistics], item: Item, layouts: Mapping[str, str]) -> None:
    first = next(iter(layouts), "")
    for name, layout in layouts.items():
        if layout != layouts[first]:
            raise StatisticsError(
                f"{chosen[name].where} ({name}), tensor {item.name!r}: the layout is {layout!r}, and "
                f"{layouts[first]!r} in those of {first!r}; collect them again in one way for all models."
            )


def check_adapters(plan: Plan) -> None:
    """Raise MethodError for factors of LoRA given as models, and for adapters of different bases.

    Only the product of two factors means something. Read as full weights, adapters of different bases would differ by
    the gap between the bases too, which no task's statistics know of.
    """
    from ..checkpoints.adapters import AdapterCheckpoint

    for item in plan.items:
        if _FACTOR.search(item.name):
            raise MethodError(
                f"Tensor {item.name!r} is one factor of a LoRA adapter, and factors cannot be solved for one by one; "
                "give the adapters as folders with their base, so that their products are merged."
            )
    found = {name: model for name, model in zip(plan.names, plan.models, strict=True)
             if isinstance(model, AdapterCheckpoint)}  # fmt: skip
    first = next(iter(found), "")
    for name, model in found.items():
        ours, theirs = found[first].base, model.base
        if ours.content_hash != theirs.content_hash and ours.weights_hash != theirs.weights_hash:
            raise MethodError(
                f"The adapters {first!r} and {name!r} stand on different bases, {ours.source} (hash "
                f"{ours.weights_hash[:12]}) and {theirs.source} ({theirs.weights_hash[:12]}): merge adapters of one "
                "base."
            )
