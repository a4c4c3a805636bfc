"""The merge itself: tensor by tensor, several at a time, never a whole model in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import MethodError
from ..methods.context import Context, Scratch
from ..progress import Progress, Stop, report
from .device import check_dtype, pick_device
from .plan import Plan
from .shared import KEEP_BYTES, keep
from .structure import Item
from .workers import default_threads, ordered

_TORCH = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def stream(
    plan: Plan,
    *,
    threads: int | None = None,
    device: str | torch.device = "auto",
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Merge and yield ``(name, CPU tensor)`` in the order of names, each in its output dtype.

    Bit-equal for any number of ``threads`` and any layout of the checkpoints in files. Tied names are not repeated:
    they are in ``plan.aliases``. Raises MethodError naming the model and tensor on a value that is not finite or does
    not fit the output dtype, and :class:`~mergelab.errors.Cancelled` between two tensors after ``stop``.
    """
    where = pick_device(device, merging=True)
    check_dtype(where, plan.compute)
    threads = threads or default_threads()
    for checkpoint in {id(model): model for model in (plan.reference, *plan.models)}.values():
        if hasattr(checkpoint, "fetch"):  # on the Hub: download before the workers start
            checkpoint.fetch(progress=progress, stop=stop)
    count = _Count(plan, progress)
    survey = _survey(plan, where, threads, count, stop)
    kept, key = _kept(plan, where)
    fresh: dict[str, Tensor] | None = {} if key is not None and kept is None else None

    def work(item: Item) -> Tensor:
        with torch.no_grad(), _scratch:
            return merge_item(plan, item, where, survey, kept=kept, fresh=fresh)

    for item, tensor in ordered(work, plan.items, threads, stop):
        count.step(item.name)
        yield item.name, tensor
    if fresh is not None:
        keep(plan.shared, key, fresh)


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
                with torch.no_grad(), _scratch:
                    base, experts = inputs(plan, item, where)
                    return survey.look(round_, base, experts, _context(plan, item, {}))

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
    if plan.method.gives != "task_vector" or not resident or size > KEEP_BYTES:
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


def merge_item(
    plan: Plan,
    item: Item,
    device: torch.device,
    survey: Mapping[str, Any],
    *,
    kept: Mapping[str, Tensor] | None = None,
    fresh: dict[str, Tensor] | None = None,
) -> Tensor:
    """One tensor of the result, on the CPU, in its output dtype.

    ``kept`` holds merged task vectors that need only their coefficient; those made here are put into ``fresh``.
    """
    if not item.merge:
        copied = read(plan.reference, item.name)
        return copied.to(_TORCH.get(plan.code(item), copied.dtype), copy=True)
    out = _computed(plan, item, device, survey, kept=kept, fresh=fresh)
    if tuple(out.shape) != item.shape:
        raise RuntimeError(f"method {plan.method.name} made {tuple(out.shape)} of {item.shape} for {item.name}")
    if not _all_finite(out):
        raise MethodError(
            f"Merging gave {_not_finite(out)} in tensor {item.name!r} with {plan.method.name!r}; "
            "use smaller coefficients, or dtype 'float64'."
        )
    return _cast(out, plan.code(item), item.name).cpu()


def _computed(
    plan: Plan,
    item: Item,
    device: torch.device,
    survey: Mapping[str, Any],
    *,
    kept: Mapping[str, Tensor] | None,
    fresh: dict[str, Tensor] | None,
) -> Tensor:
    """What the kernel makes of one tensor: weights, or θ0 + λ·τ, in the computing dtype on the device."""
    values = {parameter.name: plan.values[parameter.name] for parameter in plan.method.parameters}
    if plan.method.gives == "weights":
        base, experts = inputs(plan, item, device)
        return plan.method.kernel(base, experts, context=_context(plan, item, survey), **values)
    scale = values.pop("lambda", 1.0)
    if kept is not None:
        return torch.add(_input(plan, plan.base, None, item, device), kept[item.name], alpha=scale)
    base, experts = inputs(plan, item, device)
    tau = plan.method.kernel(base, experts, context=_context(plan, item, survey), **values)
    if fresh is not None:
        fresh[item.name] = tau.clone()
    assert base is not None
    return torch.add(base, tau, alpha=scale)


_scratch = Scratch()


def _context(plan: Plan, item: Item, survey: Mapping[str, Any]) -> Context:
    return Context(item.name, plan.keys, plan.seed, survey, _scratch)


def inputs(plan: Plan, item: Item, device: torch.device) -> tuple[Tensor | None, list[Tensor]]:
    """The tensor of the base and of every model, contiguous, in the computing dtype, known to be finite."""
    base = None if plan.base is None else _input(plan, plan.base, None, item, device)
    return base, [_input(plan, model, name, item, device) for name, model in zip(plan.names, plan.models, strict=True)]


def _input(plan: Plan, checkpoint: Any, model: str | None, item: Item, device: torch.device) -> Tensor:
    tensor = read(checkpoint, item.name).to(device=device, dtype=plan.compute).contiguous()
    if tuple(tensor.shape) != item.shape:
        raise MethodError(f"Tensor {item.name!r} of {_who(model)} changed its shape while it was read; load it again.")
    if (model, item.name) not in plan.shared.finite:
        if not _all_finite(tensor):
            raise MethodError(
                f"{'The base' if model is None else f'Model {model!r}'} has {_not_finite(tensor)} in tensor "
                f"{item.name!r}; the file is damaged or its training diverged, so use another checkpoint."
            )
        plan.shared.finite.add((model, item.name))
    return tensor


def read(checkpoint: Any, name: str) -> Tensor:
    """A tensor by its name, or by the name that it is tied to."""
    if name not in checkpoint.infos:
        name = getattr(checkpoint, "aliases", {}).get(name, name)
    return checkpoint[name].detach()


def _all_finite(tensor: Tensor) -> bool:
    # A sum is finite only if every value is, and costs a fraction of looking at each; it may overflow, so look then.
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def _not_finite(tensor: Tensor) -> str:
    bad = ~torch.isfinite(tensor)
    kind = "NaN" if torch.isnan(tensor).any() else "infinity"
    first: Sequence[int] = bad.nonzero()[0].tolist()
    return f"{kind} ({int(bad.sum())} of {tensor.numel()} values, the first at {list(first)})"


def _cast(tensor: Tensor, code: str, name: str) -> Tensor:
    dtype = _TORCH[code]
    if torch.finfo(dtype).max < torch.finfo(tensor.dtype).max:
        low, high = torch.aminmax(tensor)
        largest = max(-float(low), float(high))
        if largest > torch.finfo(dtype).max:
            raise MethodError(
                f"Tensor {name!r} holds {largest:.4g} after merging, more than {str(dtype).removeprefix('torch.')} "
                f"can store ({torch.finfo(dtype).max:.4g}); set out_dtype to 'bfloat16' or 'float32'."
            )
    return tensor.to(dtype)


def _who(model: str | None) -> str:
    return "the base" if model is None else f"model {model!r}"
