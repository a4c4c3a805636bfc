"""The merge itself: tensor by tensor, several at a time, never a whole model in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..progress import Progress, Stop, report
from .device import check_dtype, pick_device
from .gate import GATE_BYTES, Gate
from .joint import merge_joint, units
from .needs import statistics_bytes
from .plan import Plan
from .shared import KEEP_BYTES, keep
from .structure import Item
from .tensor import context_of, inputs, merge_item, read, scratch
from .through import check_collected
from .workers import default_threads, ordered

__all__ = ["Run", "inputs", "merge_to_memory", "read", "stream"]


def stream(
    plan: Plan,
    *,
    threads: int | None = None,
    device: str | torch.device = "auto",
    progress: Progress | None = None,
    stop: Stop | None = None,
    log: Callable[[Mapping[str, Any]], None] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Merge and yield ``(name, CPU tensor)`` in the order of names, each in its output dtype (a weight that is solved
    with its bias just before that bias).

    Bit-equal for any number of ``threads`` and any layout of the checkpoints in files. Tied names are not repeated:
    they are in ``plan.aliases``. Raises MethodError naming the model and tensor on a value that is not finite or does
    not fit the output dtype, and :class:`~mergelab.errors.Cancelled` between two tensors after ``stop``. ``log`` gets
    what a matched method wrote down about each tensor, in the same order.
    """
    run = Run.of(plan, device, threads, progress, stop)
    kept, key = _kept(plan, run.where)
    fresh: dict[str, Tensor] | None = {} if key is not None and kept is None else None

    def work(unit: tuple[Item, ...]) -> tuple[list[Tensor], list[Mapping[str, Any]]]:
        entries: list[Mapping[str, Any]] = []
        told = None if log is None else entries.append
        if len(unit) > 1:
            return run.joint(*unit, log=told), entries
        return [run.item(unit[0], kept=kept, fresh=fresh, log=told)], entries

    for unit, (tensors, entries) in ordered(work, units(plan), run.threads, stop, size=plan.bytes_of):
        for entry in entries if log is not None else ():
            log(entry)  # type: ignore[misc]
        for item, tensor in zip(unit, tensors, strict=True):
            run.count.step(item.name)
            yield item.name, tensor
    if fresh is not None:
        keep(plan.shared, key, fresh)


@dataclass(frozen=True)
class Run:
    """A merge about to work on tensors: where, how many at a time, what was found in all of them beforehand."""

    plan: Plan
    where: torch.device
    threads: int
    count: _Count
    survey: Mapping[str, Any]
    start: Run | None
    gate: Gate

    @classmethod
    def of(
        cls, plan: Plan, device: str | torch.device, threads: int | None, progress: Progress | None, stop: Stop | None
    ) -> Run:
        """Downloads what is on the Hub and makes the surveys."""
        check_collected(plan)
        where = pick_device(device, merging=True)
        check_dtype(where, plan.compute)
        threads = threads or default_threads()
        start = plan.start if isinstance(plan.start, Plan) else None
        sources = [plan.reference, *plan.models, *([plan.start] if hasattr(plan.start, "infos") else [])]
        for checkpoint in {id(model): model for model in sources}.values():
            if hasattr(checkpoint, "fetch"):  # on the Hub: download before the workers start
                checkpoint.fetch(progress=progress, stop=stop)
        count, gate = _Count(plan, progress), Gate(GATE_BYTES)
        begun = None
        if start is not None:
            begun = cls(start, where, threads, count, _survey(start, where, threads, count, stop), None, gate)
        return cls(plan, where, threads, count, _survey(plan, where, threads, count, stop), begun, gate)

    def item(self, item: Item, **more: Any) -> Tensor:
        """One tensor of the result; see `merge_item`. Waits while too much else is in memory."""
        with torch.no_grad(), scratch, self.gate.hold(self._held(item)):
            return merge_item(self, item, **more)

    def joint(self, weight: Item, bias: Item, **more: Any) -> list[Tensor]:
        """A weight and the bias that is solved for with it; see `merge_joint`."""
        with torch.no_grad(), scratch, self.gate.hold(self._held(weight)):
            return merge_joint(self, weight, bias, **more)

    def _held(self, item: Item) -> int:
        return statistics_bytes(self.plan, item) if self.plan.statistics else 0


class _Count:
    """Progress in tensors: a survey's rounds over all of them, then the merge."""

    def __init__(self, plan: Plan, progress: Progress | None) -> None:
        self.progress, self.done, self.total = progress, 0, len(plan.items)

    def step(self, text: str) -> None:
        self.done += 1
        report(self.progress, self.done, self.total, text)


def _survey(plan: Plan, where: torch.device, threads: int, count: _Count, stop: Stop | None) -> Mapping[str, Any]:
    """Whole-model numbers, from as many readings of all tensors as the method asks for, unless already known."""
    if plan.method.survey is None:
        return {}
    survey = plan.method.survey(dict(plan.values), len(plan.names), plan.compute)
    if survey is None:
        return {}
    key = (plan.method.name, survey.key(), plan.compute, where.type)
    if key not in plan.shared.surveys:
        merged = [item for item in plan.items if item.merge]
        count.total += survey.rounds * len(merged)
        for round_ in range(survey.rounds):

            def look(item: Item, round_: int = round_) -> Any:
                with torch.no_grad(), scratch:
                    base, experts = inputs(plan, item, where)
                    return survey.look(round_, base, experts, context_of(plan, item, {}))

            for item, seen in ordered(look, merged, threads, stop):
                survey.collect(round_, seen)
                count.step(f"surveying {item.name}")
            survey.end_round(round_)
        plan.shared.surveys[key] = survey.result()
    return plan.shared.surveys[key]


def _kept(plan: Plan, where: torch.device) -> tuple[dict[str, Tensor] | None, Any]:
    """(the merged task vector if it is known, the key to keep it under): only for models that lie in memory anyway."""
    size = torch.finfo(plan.compute).bits // 8 * sum(item.numel for item in plan.items if item.merge)
    resident = all(str(checkpoint.source).startswith("memory:") for checkpoint in (plan.reference, *plan.models))
    if plan.method.gives != "task_vector" or plan.method.learns or not resident or size > KEEP_BYTES:
        return None, None
    values = tuple((name, tuple(value) if isinstance(value, list) else value)
                   for name, value in plan.values.items() if name != "lambda")  # fmt: skip
    key = (
        plan.method.name,
        values,
        plan.seed if plan.method.promises.random else 0,
        plan.keys,
        plan.compute,
        where.type,
    )
    found = plan.shared.task_vector
    return (found[1] if found is not None and found[0] == key else None), key


def merge_to_memory(
    plan: Plan,
    *,
    threads: int | None = None,
    device: str | torch.device = "auto",
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> dict[str, Tensor]:
    """The merged state dict; tied names share one tensor."""
    out = dict(stream(plan, threads=threads, device=device, progress=progress, stop=stop))
    for name, target in plan.aliases.items():
        out[name] = out[target]
    return out
