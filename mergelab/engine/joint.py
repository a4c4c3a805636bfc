"""A linear layer's weight and bias solved for as one matrix: the bias is the weight of one more input, always 1.

With x̃ = (x, 1), a layer's A becomes E[x̃ x̃ᵀ] = [[A, m], [mᵀ, 1]] where m is the mean input (Martens and Grosse 2015,
section 2.1: homogeneous coordinates), and [W | b] is solved for like any weight. Kernels know nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..statistics import Block
from .needs import has
from .plan import Plan
from .structure import Item
from .tensor import blocks_of, cast_error, computed, context_of, finished, inputs, started

if TYPE_CHECKING:
    from .stream import Run

#: The parameter of methods that can do this, and its value that asks for it.
BIAS, AUGMENT = "bias", "augment"


def units(plan: Plan) -> list[tuple[Item, ...]]:
    """What is worked on at a time: tensors one by one, but a weight with its bias where they are solved together."""
    if plan.values.get(BIAS) != AUGMENT:
        return [(item,) for item in plan.items]
    items = {item.name: item for item in plan.items}
    weights = {bias.name: item for item in plan.items if (bias := bias_of(plan, item, items)) is not None}
    taken = {item.name for item in weights.values()}
    return [
        (weights[item.name], item) if item.name in weights else (item,) for item in plan.items if item.name not in taken
    ]


def bias_of(plan: Plan, weight: Item, items: Mapping[str, Item]) -> Item | None:
    """The bias that is solved for with ``weight``; None where there is none, or no statistics for it."""
    kinds = plan.method.statistics(dict(plan.values))
    if not weight.merge or not weight.name.endswith("weight") or not has(plan, weight.name, kinds[0]):
        return None
    bias = items.get(weight.name.removesuffix("weight") + "bias")
    entries = [s.entries[weight.name] for s in plan.statistics if s is not None]
    outputs = weight.shape[1] if entries[0].layout == "conv1d" else weight.shape[0]
    fits = bias is not None and bias.merge and bias.shape == (outputs,)
    return bias if fits and all("mean" in entry.pieces for entry in entries) else None


def merge_joint(
    run: Run,
    weight: Item,
    bias: Item,
    *,
    log: Callable[[Mapping[str, Any]], None] | None = None,
    snapshot: Callable[[Item, int, Tensor], None] | None = None,
    grid: Collection[int] = (),
) -> list[Tensor]:
    """Both tensors of a linear layer, as :func:`~mergelab.engine.tensor.merge_item` gives one."""
    plan = run.plan
    parts = [inputs(plan, item, run.where) for item in (weight, bias)]
    layout = next(s.entries[weight.name].layout for s in plan.statistics if s is not None)
    (base_w, experts_w), (base_b, experts_b) = parts
    experts = [_joined(w, b, layout) for w, b in zip(experts_w, experts_b, strict=True)]
    base = None if base_w is None or base_b is None else _joined(base_w, base_b, layout)
    needs: dict[str, Any] = {}
    if not all(torch.equal(experts[0], other) for other in experts[1:]):
        needs["statistics"] = [augmented(block) for block in blocks_of(plan, weight, run.where)]
    start = _start(run, (weight, bias), parts, layout, base=base, experts=experts, needs=needs)
    if start is not None:
        needs["start"] = start

    def split(out: Tensor) -> list[Tensor]:
        flat = out if layout == "conv1d" else out.T
        solved = flat[:-1] if layout == "conv1d" else flat[:-1].T
        tensors = (solved.reshape(weight.shape), flat[-1])
        return [finished(plan, item, tensor.contiguous()) for item, tensor in zip((weight, bias), tensors, strict=True)]

    if snapshot is not None:

        def keep(k: int, out: Tensor) -> None:
            for item, tensor in zip((weight, bias), split(out), strict=True):
                snapshot(item, k, tensor)

        needs |= {"grid": grid, "snapshot": keep}
    if log is not None:
        entries: list[Mapping[str, Any]] = []
        needs["log"] = entries.append
    context = context_of(plan, weight, run.survey, **needs)
    made = computed(plan, base, experts, context)
    out = split(made)
    if log is not None:
        lost = cast_error(made, _joined(out[0], out[1], layout))
        for entry in entries:
            _told(log, {**entry, **lost}, weight, bias)
    return out


def _told(log: Callable[[Mapping[str, Any]], None], entry: Mapping[str, Any], weight: Item, bias: Item) -> None:
    """An entry for each of the two; how far they moved is said of both together."""
    log({**entry, "shape": list(weight.shape), "with": bias.name})
    brief = {key: entry[key] for key in ("by", "why", "stopped", "moved", "task_vector", "change")}
    log({**brief, "tensor": bias.name, "shape": list(bias.shape), "with": weight.name})


def augmented(block: Block) -> Block:
    """A block whose inputs have one more, always 1: A [in + 1, in + 1]."""
    assert block.inputs is not None and block.mean is not None
    row = torch.cat([block.mean, block.mean.new_ones(1)])
    inputs = torch.cat([torch.cat([block.inputs, block.mean[:, None]], dim=1), row[None]])
    return replace(block, inputs=inputs, mean=None, diagonal=None, full=None, shape=None,
                   layout="conv1d" if block.layout == "conv1d" else "linear")  # fmt: skip


def _joined(weight: Tensor, bias: Tensor, layout: str) -> Tensor:
    """[W | b]: the bias is one more input, so one more row of a Conv1D and one more column of any other."""
    if layout == "conv1d":
        return torch.cat([weight, bias[None]])
    return torch.cat([weight.flatten(1), bias[:, None]], dim=1)


def _start(
    run: Run, items: tuple[Item, Item], parts: Sequence[tuple[Tensor | None, list[Tensor]]], layout: str, *,
    base: Tensor | None, experts: list[Tensor], needs: Mapping[str, Any],
) -> Tensor | None:  # fmt: skip
    """Where the solver starts: both tensors' own starts, or a joint one where the start is solved jointly too."""
    if run.start is not None and run.start.plan.values.get(BIAS) == AUGMENT:
        given = {"statistics": needs["statistics"]} if "statistics" in needs else {}
        return computed(run.start.plan, base, experts, context_of(run.start.plan, items[0], run.start.survey, **given))
    found = [started(run, item, *part) for item, part in zip(items, parts, strict=True)]
    return None if found[0] is None or found[1] is None else _joined(found[0], found[1], layout)
