"""One tensor of a merge: its inputs, what the method needs besides them, the kernel, the result in its dtype."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import MethodError
from ..methods.context import Context, Scratch
from .needs import read_for, why_missing
from .plan import Plan
from .structure import Item

if TYPE_CHECKING:
    from .stream import Run

#: Who a tensor is from where it is the start of a solver; no model can be called so.
START = "\0init"
_TORCH = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def merge_item(
    run: Run,
    item: Item,
    *,
    kept: Mapping[str, Tensor] | None = None,
    fresh: dict[str, Tensor] | None = None,
    log: Callable[[Mapping[str, Any]], None] | None = None,
    snapshot: Callable[[int, Tensor], None] | None = None,
    grid: Collection[int] = (),
) -> Tensor:
    """One tensor of the result, on the CPU, in its output dtype.

    ``kept`` holds merged task vectors that need only their coefficient; those made here are put into ``fresh``.
    ``snapshot`` gets the tensor after the iterations in ``grid``, like the result.
    """
    plan = run.plan
    if not item.merge:
        copied = read(plan.reference, item.name)
        return copied.to(_TORCH.get(plan.code(item), copied.dtype), copy=True)
    if kept is not None:
        scale = plan.values.get("lambda", 1.0)
        return finished(plan, item, torch.add(_input(plan, plan.base, None, item, run.where), kept[item.name],
                                              alpha=scale))  # fmt: skip
    base, experts = inputs(plan, item, run.where)
    needs = _needs(run, item, base, experts)
    entries: list[Mapping[str, Any]] = []
    if log is not None and plan.method.kind == "matched":
        needs["log"] = entries.append
    if snapshot is not None:
        needs["grid"] = grid
        needs["snapshot"] = lambda k, tensor: snapshot(k, finished(plan, item, tensor))
    context = context_of(plan, item, run.survey, **needs)
    made = computed(plan, base, experts, context, fresh=fresh)
    out = finished(plan, item, made)
    for entry in entries if log is not None else ():
        log({**entry, **cast_error(made, out)})  # type: ignore[misc]
    return out


def cast_error(made: Tensor, out: Tensor) -> dict[str, float]:
    """``cast_error`` ‖out − made‖ / ‖made‖ where the output dtype is narrower than the computing one."""
    size = float(torch.linalg.vector_norm(made)) if torch.finfo(out.dtype).bits < torch.finfo(made.dtype).bits else 0.0
    if not size:
        return {}
    return {"cast_error": float(torch.linalg.vector_norm(out.to(made.device, made.dtype) - made)) / size}


def finished(plan: Plan, item: Item, out: Tensor) -> Tensor:
    """A tensor as it comes out: checked, in its output dtype, on the CPU."""
    if tuple(out.shape) != item.shape:
        raise RuntimeError(f"method {plan.method.name} made {tuple(out.shape)} of {item.shape} for {item.name}")
    if not _all_finite(out):
        raise MethodError(
            f"Merging gave {_not_finite(out)} in tensor {item.name!r} with {plan.method.name!r}; "
            "use smaller coefficients, or dtype 'float64'."
        )
    return _cast(out, plan.code(item), item.name).cpu()


def _needs(run: Run, item: Item, base: Tensor | None, experts: list[Tensor]) -> dict[str, Any]:
    """What the context of a method gets that needs statistics, a start or learned coefficients."""
    plan, out = run.plan, dict[str, Any]()
    if plan.learned is not None and item.name in plan.learned:
        out["learned"] = plan.learned[item.name]
    kinds = plan.method.statistics(dict(plan.values))
    # Where an adapter did not touch a tensor all models are equal, and there is nothing to weigh.
    same = bool(plan.statistics) and all(torch.equal(experts[0], other) for other in experts[1:])
    if kinds and not same:
        out["missing"] = why_missing(plan, item.name, kinds[0])
        out["statistics"] = blocks_of(plan, item, run.where)
    start = started(run, item, base, experts, same=same, statistics=out.get("statistics"))
    if start is not None:
        out["start"] = start
    return out


def started(
    run: Run,
    item: Item,
    base: Tensor | None,
    experts: list[Tensor],
    *,
    same: bool = False,
    statistics: Sequence[Any] | None = None,
) -> Tensor | None:
    """The tensor that the method starts from; None for the average. ``same``: all experts are equal here."""
    plan = run.plan
    if run.start is not None:
        part = {"statistics": statistics} if statistics else {}
        if not part and not same and run.start.plan.method.statistics(dict(run.start.plan.values)):
            part = {"statistics": blocks_of(plan, item, run.where)}
        return computed(run.start.plan, base, experts, context_of(run.start.plan, item, run.start.survey, **part))
    if plan.start == "base":
        return base
    return None if plan.start is None else _input(plan, plan.start, START, item, run.where)


def blocks_of(plan: Plan, item: Item, where: torch.device) -> list[Any]:
    """Every model's statistics of a tensor, on the device, in the computing dtype; only what is used."""
    kinds = read_for(plan, item.name)
    if not kinds:
        return []
    found = [s.block(item.name, kinds) for s in plan.statistics if s is not None]
    return [block if block is None else block.to(where, plan.compute) for block in found]


def computed(
    plan: Plan,
    base: Tensor | None,
    experts: list[Tensor],
    context: Context,
    *,
    fresh: dict[str, Tensor] | None = None,
) -> Tensor:
    """What the kernel makes of one tensor: weights, or θ0 + λ·τ, in the computing dtype on the device."""
    values = {parameter.name: plan.values[parameter.name] for parameter in plan.method.parameters}
    if plan.method.gives == "weights":
        return plan.method.kernel(base, experts, context=context, **values)
    scale = values.pop("lambda", 1.0)
    tau = plan.method.kernel(base, experts, context=context, **values)
    if fresh is not None:
        fresh[context.name] = tau.clone()
    assert base is not None
    return torch.add(base, tau, alpha=scale)


scratch = Scratch()


def context_of(plan: Plan, item: Item, survey: Mapping[str, Any], **needs: Any) -> Context:
    return Context(item.name, plan.keys, plan.seed, survey, scratch, **needs)


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
            who = _who(model)
            raise MethodError(
                f"{who[0].upper()}{who[1:]} has {_not_finite(tensor)} in tensor {item.name!r}; the file is damaged or "
                "its training diverged, so use another checkpoint."
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
    return "the base" if model is None else "the init" if model == START else f"model {model!r}"
