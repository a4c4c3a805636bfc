"""The merge itself: tensor by tensor, several at a time, never a whole model in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import MethodError
from ..methods.context import Context
from ..progress import Progress, Stop, report
from .device import check_dtype, pick_device
from .plan import Plan
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

    Bit-equal for any number of ``threads`` and any layout of the checkpoints in files. Tied names are not repeated: they are
    in ``plan.aliases``. Raises MethodError naming the model and tensor on a value that is not finite or does not fit the
    output dtype, and :class:`~mergelab.errors.Cancelled` between two tensors after ``stop``.
    """
    where = pick_device(device, merging=True)
    check_dtype(where, plan.compute)
    threads = threads or default_threads()
    survey = plan.method.survey(dict(plan.values), len(plan.names), plan.compute) if plan.method.survey else None
    rounds = survey.rounds if survey is not None else 0
    merged = [item for item in plan.items if item.merge]
    total = len(plan.items) + rounds * len(merged)
    found: Mapping[str, Any] = {}
    done = 0
    if survey is not None:
        key = (plan.method.name, survey.key(), plan.compute, where.type)
        if key not in plan.shared.surveys:
            for round_ in range(rounds):

                def look(item: Item, round_: int = round_) -> Any:
                    with torch.no_grad():
                        return survey.look(round_, item.name, *inputs(plan, item, where))

                for item, seen in ordered(look, merged, threads, stop):
                    survey.collect(round_, seen)
                    done += 1
                    report(progress, done, total, f"surveying {item.name}")
                survey.end_round(round_)
            plan.shared.surveys[key] = survey.result()
        found, done = plan.shared.surveys[key], rounds * len(merged)

    def work(item: Item) -> Tensor:
        with torch.no_grad():
            return merge_item(plan, item, where, found)

    for item, tensor in ordered(work, plan.items, threads, stop):
        done += 1
        report(progress, done, total, item.name)
        yield item.name, tensor


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


def merge_item(plan: Plan, item: Item, device: torch.device, survey: Mapping[str, Any]) -> Tensor:
    """One tensor of the result, on the CPU, in its output dtype."""
    if not item.merge:
        return read(plan.reference, item.name).clone()
    base, experts = inputs(plan, item, device)
    context = Context(item.name, plan.keys, plan.seed, survey)
    values = {parameter.keyword: plan.values[parameter.name] for parameter in plan.method.parameters}
    out = plan.method.kernel(base, experts, context=context, **values)
    if tuple(out.shape) != item.shape:
        raise RuntimeError(f"method {plan.method.name} made {tuple(out.shape)} of {item.shape} for {item.name}")
    if not _all_finite(out):
        raise MethodError(
            f"Merging gave {_not_finite(out)} in tensor {item.name!r} with {plan.method.name!r}; use smaller coefficients, "
            "or dtype 'float64'."
        )
    return _cast(out, plan.code(item), item.name).cpu()


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
                f"{_who(model).capitalize() if model is None else 'M' + _who(model)[1:]} has {_not_finite(tensor)} in tensor "
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
                f"Tensor {name!r} holds {largest:.4g} after merging, more than {str(dtype).removeprefix('torch.')} can store "
                f"({torch.finfo(dtype).max:.4g}); set out_dtype to 'bfloat16' or 'float32'."
            )
    return tensor.to(dtype)


def _who(model: str | None) -> str:
    return "the base" if model is None else f"model {model!r}"
