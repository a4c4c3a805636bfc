"""Gram matrices whose inputs pass the layers merged so far: what RegMean++ merges with (Nguyen et al., 2025).

Block after block in the order in which a model runs them: inputs of every task go through the merged blocks before it
and through the block with that task's expert's own weights; what its linear layers see there is their Gram matrix.
Then the block is merged, and the next one sees its outputs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..engine.needs import kinds_of
from ..engine.stream import Run
from ..engine.tensor import read
from ..engine.through import THROUGH, through_hash
from ..errors import MethodError, StatisticsError
from ..progress import Progress, Stop, report
from ..statistics import Block, TaskStatistics
from .collect import collect_stats
from .inputs import Batch, as_batch, size_of
from .prepared import prepared
from .rest import Forward
from .sites import CONV, MAPS, find
from .spilled import Spilled

if TYPE_CHECKING:
    from ..engine import Plan

#: Gives a task's batches, each time anew.
Batches = Callable[[], Iterable[Any]]


@dataclass(frozen=True)
class Part:
    """A block of a module: its path, the weights of its linear layers, how often a pass calls it."""

    path: str
    module: nn.Module
    weights: tuple[str, ...]
    calls: int

    def holds(self, name: str) -> bool:
        """Whether a tensor of the module is in this block."""
        return not self.path or name.startswith(f"{self.path}.")


def collect_through(
    plan: Plan,
    module: nn.Module,
    batches: Mapping[str, Batches],
    forward: Forward,
    *,
    spelling: Mapping[str, str] | None = None,
    split: str = "",
    suite: str = "",
    spill: bool = False,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> dict[str, TaskStatistics]:
    """Statistics of every model of a plan, collected through the plan's own merged layers.

    Args:
        plan: of a method that reads Gram matrices, without statistics. ``plan`` with these statistics then merges to
            exactly the weights that the inputs have passed.
        module: runs the models; its weights are exchanged meanwhile, and put back.
        batches: model name -> function that gives the batches of its task (no labels needed).
        forward: ``forward(module, inputs)`` runs the module; it is cut short after the block of interest.
        spelling: tensor names of the plan -> of the module, where they differ.
        spill: keep Gram matrices in a temporary folder, which goes with the result, and not in memory.

    Raises MethodError for a plan that needs other statistics too, StatisticsError when nothing can be collected.
    """
    if kinds_of(plan) != ("gram",):
        raise MethodError(
            f"{plan.method.title} collects Gram matrices alone, and with this 'init' it needs "
            f"{', '.join(kinds_of(plan))}; take another init, or merge that one to a folder first."
        )
    missing = [name for name in plan.names if name not in batches]
    if missing:
        raise StatisticsError(f"There are no inputs of the model {missing[0]!r}, so nothing can pass it.")
    names = _Names(plan, module, spelling)
    where = next(module.parameters()).device
    first = next(iter(batches[plan.names[0]]()), None)
    if first is None:
        raise StatisticsError(f"There are no inputs of the model {plan.names[0]!r}, so nothing can pass it.")
    parts = parts_of(module, as_batch(first), forward, names.weights)
    empty = replace(plan, statistics=tuple(TaskStatistics(name) for name in plan.names))
    run = Run.of(empty, device, None, None, stop)
    current = {names.own[item.name]: run.item(item) for item in plan.items if item.name in names.own}
    folder = tempfile.TemporaryDirectory(prefix="mergelab-through-") if spill else None
    found = {name: Spilled(name, folder) for name in plan.names}
    examples: dict[str, int] = {}
    for place, part in enumerate(parts):
        here: dict[str, dict[str, Block]] = {}
        for number, (name, model) in enumerate(zip(plan.names, plan.models, strict=True)):
            report(progress, place * len(plan.names) + number, len(parts) * len(plan.names),
                   f"Inputs of {part.path or 'the model'} on {name}")  # fmt: skip
            own = {key: read(model, item) for key, item in names.items.items() if part.holds(key)}
            with placed(module, {**current, **own}):
                seen = collect_stats(
                    module, batches[name](), until(forward, part, where), kinds=("gram",), names=list(part.weights),
                    max_examples=None, task=name, weights_hash="", stop=stop,
                )  # fmt: skip
            here[name] = {names.items[key]: _block(seen, key) for key in seen.names}
            examples[name] = seen.examples
        run = replace(run, plan=replace(empty, statistics=tuple(
            TaskStatistics(name, here[name]) for name in plan.names
        )))  # fmt: skip
        current |= {names.own[i.name]: run.item(i) for i in plan.items if part.holds(names.own.get(i.name, "\0"))}
        for name, blocks in here.items():
            found[name].add(blocks)
    report(progress, len(parts), len(parts), "Inputs collected")
    digest = through_hash(plan)
    return {
        name: found[name].statistics(
            name=name, weights_hash=model.weights_hash, split=split, examples=examples.get(name, 0), suite=suite,
            meta={THROUGH: digest, "blocks": [part.path for part in parts]},
        ) for name, model in zip(plan.names, plan.models, strict=True)
    }  # fmt: skip


class _Names:
    """How the plan's tensors are called in the module (``own``) and back (``items``)."""

    def __init__(self, plan: Plan, module: nn.Module, spelling: Mapping[str, str] | None) -> None:
        known = set(module.state_dict())
        called = {item.name: (spelling or {}).get(item.name, item.name) for item in plan.items}
        self.own = {name: own for name, own in called.items() if own in known}
        self.items = {own: name for name, own in self.own.items()}
        merged = {item.name for item in plan.items if item.merge}
        self.weights = frozenset(own for name, own in self.own.items() if name in merged)
        if not self.weights:
            raise StatisticsError(
                f"None of the {len(plan.items)} tensors that are merged is one of the module's, such as "
                f"{next(iter(known), 'none')!r}: give their spelling."
            )


def parts_of(module: nn.Module, batch: Batch, forward: Forward, weights: Iterable[str]) -> list[Part]:
    """The blocks of a module with linear layers among ``weights``, in the order in which a pass first calls them.

    A block is a child of the outermost list of modules (a transformer's layers), else a child of the outermost
    ``Sequential``, else a linear layer, or fused attention, by itself.
    """
    paths = {part: path for path, part in module.named_modules()}
    groups: dict[str, list[str]] = {}
    wanted = set(weights)
    for site in find(module).all:
        if site.kind in MAPS and site.kind != CONV and site.weight in wanted:
            group = groups.setdefault(_block_path(module, paths[site.module]), [])
            if site.weight not in group:
                group.append(site.weight)  # type: ignore[arg-type]
    calls: dict[str, int] = {}

    def count(path: str) -> Callable[..., None]:
        def called(*_: Any) -> None:
            calls[path] = calls.get(path, 0) + 1

        return called

    handles = [module.get_submodule(path).register_forward_pre_hook(count(path)) for path in groups]
    device = next(module.parameters()).device
    try:
        with prepared(module, torch.float32, device), torch.no_grad():
            forward(module, batch.first(1).to(device, torch.float32).inputs)
    finally:
        for handle in handles:
            handle.remove()
    if not calls:
        raise StatisticsError("No linear layer of the module is called, so there are no inputs to collect.")
    return [Part(path, module.get_submodule(path), tuple(groups[path]), number) for path, number in calls.items()]


def _block_path(module: nn.Module, path: str) -> str:
    steps = path.split(".") if path else []
    above = [".".join(steps[:i]) for i in range(len(steps))]
    for kind in (nn.ModuleList, nn.Sequential):
        for depth, prefix in enumerate(above):
            if isinstance(module.get_submodule(prefix), kind):
                return ".".join(steps[: depth + 1])
    return next((prefix for prefix in above if isinstance(module.get_submodule(prefix), nn.MultiheadAttention)), path)


class _ReachedError(Exception):
    """The block of interest has seen its inputs."""


def until(forward: Forward, part: Part, device: torch.device) -> Forward:
    """``forward`` that ends once the block was called as often as a pass calls it."""

    def run(module: nn.Module, inputs: Any) -> Tensor:
        left = part.calls

        def reached(*_: Any) -> None:
            nonlocal left
            left -= 1
            if not left:
                raise _ReachedError

        handle = part.module.register_forward_hook(reached)
        try:
            forward(module, inputs)
        except _ReachedError:
            pass
        finally:
            handle.remove()
        return torch.zeros(size_of(inputs), 1, device=device)

    return run


@contextmanager
def placed(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the block the module has these tensors, in its own dtypes; the former ones are back afterwards."""
    slots = module.state_dict(keep_vars=True)
    former: list[tuple[Tensor, Tensor]] = []
    try:
        for name, tensor in tensors.items():
            slot = slots[name]
            former.append((slot, slot.data))
            slot.data = tensor.to(slot.device, slot.dtype)
        yield
    finally:
        for slot, data in reversed(former):
            slot.data = data


def _block(found: TaskStatistics, name: str) -> Block:
    block = found.block(name)
    assert block is not None
    return block


def batches_of(inputs: Tensor, size: int, prepare: Callable[[Tensor], Tensor]) -> Batches:
    """Batches of ``size`` inputs, prepared when they are asked for."""

    def give() -> Iterator[Batch]:
        for part in inputs.split(size):
            yield Batch(prepare(part))

    return give
