"""What a matched method needs besides models: statistics that belong to them, and a merge to start from."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import methods
from ..errors import MergeLabError, MethodError, StatisticsError, suggest
from ..recipe.start import PLAIN, Init
from ..statistics import TaskStatistics, matched, read, read_folder
from .adapters import ADAPTER, own_space
from .fit import check_adapters, check_fit
from .structure import Item, compare
from .through import check_through

if TYPE_CHECKING:
    from .plan import Plan

#: A full Fisher block of more entries than this is refused: [n, n] for each model.
BLOCK_LIMIT = 8192
#: Kinds that only the weight of a linear layer has.
_OF_LAYERS = ("gram", "kfac")
_WORDS = {
    "kfac": "inputs of linear layers and gradients of their outputs (K-FAC factors)",
    "gram": "inputs of linear layers (Gram matrices)",
    "diag": "diagonal Fishers",
    "block": "full Fisher blocks of small tensors",
}


def kinds_of(plan: Plan) -> tuple[str, ...]:
    """The kinds of statistics that the plan's method and its start read, each once."""
    kinds = [kind for each in _steps(plan) for kind in each.method.statistics(dict(each.values))]
    return tuple(dict.fromkeys(kinds))


def _steps(plan: Plan) -> list[Plan]:
    """The plan, and the merge that it starts from where that is one."""
    start: Any = plan.start
    return [plan, start] if hasattr(start, "method") else [plan]


def read_for(plan: Plan, name: str) -> tuple[str, ...]:
    """The kinds that tensor ``name`` is read with: of each method the first one that all models have whole."""
    out: dict[str, None] = {}
    for each in _steps(plan):
        for kind in each.method.statistics(dict(each.values)):
            if has(plan, name, kind):
                out[kind] = None
                break
    return tuple(out)


def has(plan: Plan, name: str, kind: str) -> bool:
    """Whether every model has statistics of this kind for tensor ``name``."""
    return bool(plan.statistics) and all(
        s is not None and name in s.entries and kind in s.entries[name].kinds for s in plan.statistics
    )


def statistics_bytes(plan: Plan, item: Item) -> int:
    """Bytes of all models' statistics of a tensor while it is worked on."""
    kinds, wide = read_for(plan, item.name), 2 if plan.compute == torch.float64 else 1
    return sum(s.entries[item.name].nbytes(kinds) * wide for s in plan.statistics if s is not None) if kinds else 0


def why_missing(plan: Plan, name: str, kind: str) -> str:
    """Why tensor ``name`` has no statistics of this kind, as the collector noted it; "" where it did not."""
    for model, found in zip(plan.names, plan.statistics, strict=False):
        if found is None or (name in found.entries and kind in found.entries[name].kinds):
            continue
        for key in (name, name.rpartition(".")[0]):
            if key and key in found.skipped:
                return f"{found.skipped[key]} (statistics of {model!r})"
    return ""


# ---- statistics ----


def gather(plan: Plan, given: Any) -> Plan:
    """The plan with the statistics of its models, matched and checked by headers alone; as it is where none are needed.

    ``given``: a folder, or a mapping of names to :class:`TaskStatistics` or files. Raises StatisticsError and
    MethodError: none given, no such folder, another checkpoint's, a kind that is missing, shapes that do not fit, no
    tensor that the method can work on.
    """
    kinds = kinds_of(plan)
    if not kinds:
        return plan
    if plan.space == ADAPTER:
        _no_layers(plan)
    if given is None:
        if not plan.statistics:
            if plan.method.collects:
                return plan
            raise StatisticsError(_none_given(plan, kinds))
        found: Mapping[str, TaskStatistics] = {
            name: s for name, s in zip(plan.names, plan.statistics, strict=True) if s is not None
        }
    else:
        found = opened_statistics(given, plan, kinds)
    check_adapters(plan)
    chosen = matched(found, dict(zip(plan.names, plan.models, strict=True)), kinds)
    made = dataclasses.replace(
        plan, statistics=tuple(chosen[name] for name in plan.names), warnings=chosen.warnings,
        statistics_from=str(given) if isinstance(given, str | Path) else plan.statistics_from,
    )  # fmt: skip
    check_fit(made, chosen, kinds)
    _some_tensor(made)
    check_through(made)
    return made


def opened_statistics(given: Any, plan: Plan | None = None, kinds: Sequence[str] = ()) -> dict[str, TaskStatistics]:
    """Statistics by task or model name, from a folder or a mapping to them or to files."""
    if isinstance(given, Mapping):
        return {str(name): _one(str(name), s) for name, s in given.items()}
    if not isinstance(given, str | Path):
        raise StatisticsError(
            f"Statistics must be a folder or a mapping of names to them, not {type(given).__name__}; "
            "collect them with python -m mergelab stats."
        )
    if plan is not None and not Path(given).expanduser().is_dir():
        raise StatisticsError(
            f"There is no folder {str(given)[:200]!r} with statistics; make it with `{_command(plan, kinds, given)}`, "
            "or name another."
        )
    return read_folder(given)


def _one(name: str, given: Any) -> TaskStatistics:
    if isinstance(given, TaskStatistics):
        return given
    if not isinstance(given, str | Path):
        raise StatisticsError(
            f"Those of {name!r} among the statistics are of the type {type(given).__name__}; give what collect_stats "
            "returned, or the file that it was written to."
        )
    return read(given)


def _command(plan: Plan, kinds: Sequence[str], out: Any) -> str:
    source = str(getattr(plan.models[0], "source", ""))
    zoo = re.match(r"zoo:[^/]+", source)
    space = f" --space {ADAPTER}" if plan.space == ADAPTER else ""
    return f"python -m mergelab stats {zoo.group() if zoo else 'SOURCE'} --kinds {','.join(kinds)}{space} --out {out}"


def _none_given(plan: Plan, kinds: Sequence[str]) -> str:
    return (
        f"Method {plan.method.name!r} needs statistics of every model's task ({', '.join(kinds)}), and none are given; "
        f"collect them with `{_command(plan, kinds, 'DIR')}` and name that folder as 'statistics' in the recipe, or "
        "with --stats."
    )


def _some_tensor(plan: Plan) -> None:
    """Raise MethodError where the method's statistics fit no tensor at all: then it would only average."""
    kinds = plan.method.statistics(dict(plan.values))
    if not kinds or any(has(plan, item.name, kinds[0]) for item in plan.items if item.merge):
        return
    kind, merged = kinds[0], [item for item in plan.items if item.merge]
    if kind in _OF_LAYERS and all(item.numel == max(item.shape, default=1) for item in merged):
        raise _vectors_only(plan, kind)
    largest = max(merged, key=lambda item: item.numel)
    if kind == "block" and largest.numel > BLOCK_LIMIT:
        raise MethodError(
            f"{_named(plan)} needs a full Fisher block per tensor, and no tensor has one: that of {largest.name!r} "
            f"with {largest.numel:,} entries would take {4 * largest.numel**2 / 1e9:,.1f} GB a model; use objective "
            "'kfac' or 'diag'."
        )
    raise MethodError(
        f"{_named(plan)} needs {_WORDS[kind]}, and the statistics have them for none of the {len(merged)} tensors that "
        "all models share; collect them again from these models."
    )


def _no_layers(plan: Plan) -> None:
    """Raise MethodError where a method needs statistics of linear layers, which vectors are not."""
    for each in _steps(plan):
        kinds = each.method.statistics(dict(each.values))
        if kinds and kinds[0] in _OF_LAYERS:
            raise _vectors_only(each, kinds[0])


def _vectors_only(plan: Plan, kind: str) -> MethodError:
    merged = [item for item in plan.items if item.merge]
    return MethodError(
        f"{_named(plan)} needs {_WORDS[kind]}, and all {len(merged)} tensors of these models are vectors, such as "
        f"{merged[0].name!r}, with no linear inputs of their own; use 'mats' with objective 'block' or 'diag'."
    )


def _named(plan: Plan) -> str:
    """A method in a message: with its objective where it has one."""
    objective = plan.values.get("objective")
    return f"Method {plan.method.name!r}" + (f" with objective {objective!r}" if objective else "")


# ---- the start ----


def begin(plan: Plan, init: Any, *, load: Any = None) -> Plan:
    """The plan with the merge that it starts from.

    ``init``: None or ``"average"``; ``"base"``; a method's name; a mapping with ``merge_method`` and ``parameters``, or
    with ``model`` (a source); a recipe's :class:`Init`; a checkpoint or state dict. Raises MethodError (unknown name, a
    method that needs a base and has none, a state dict that does not fit) and RecipeError (malformed).
    """
    if init is None:
        return plan
    if not plan.method.init:
        raise MethodError(
            f"Method {plan.method.name!r} does not start from another merge; leave 'init' out, or use "
            f"{_or([m.name for m in methods.registry().values() if m.init])}."
        )
    return dataclasses.replace(plan, start=_start(plan, init, load))


def _start(plan: Plan, init: Any, load: Any) -> Any:
    if hasattr(init, "infos") or _is_state(init):
        return _checkpoint(plan, init, load)
    if isinstance(init, Mapping) and "merge_method" in init and _per_model(init):
        name, parameters = init["merge_method"], init.get("parameters") or {}
    else:
        said = Init.of(init)
        if said is None or said.merge_method == "average":
            return None
        if said.model is not None:
            return _checkpoint(plan, said.model, load)
        name, parameters = said.merge_method, dict(said.parameters)
    if name == "average":
        return None
    if name == "base":
        if plan.base is None:
            raise MethodError("The init 'base' needs the base, and none is given; name it, or start from 'average'.")
        return "base"
    return _merge(plan, name, parameters)


def _per_model(init: Mapping[str, Any]) -> bool:
    """Parameters with one value per model, which the library takes and a recipe does not."""
    parameters = init.get("parameters")
    return isinstance(parameters, Mapping) and any(not isinstance(v, bool | int | float | str) for v in
                                                   parameters.values())  # fmt: skip


def _merge(plan: Plan, name: Any, parameters: Mapping[str, Any]) -> Plan:
    try:
        chosen = methods.get(name)
    except MergeLabError:
        known = [*PLAIN, *(m.name for m in methods.registry().values() if not (m.learns or m.collects))]
        if name == "pretrained":  # what the paper's code calls it
            raise MethodError("There is no init 'pretrained': the weights before fine-tuning are 'base'.") from None
        path = " A merged checkpoint is given as {model: PATH}." if re.search(r"[/\\.]", str(name)) else ""
        raise MethodError(f"There is no init {name!r}.{path or suggest(str(name), known)}") from None
    if chosen.learns or chosen.collects:
        does = "learns its coefficients on data first" if chosen.learns else "collects its statistics as it is merged"
        raise MethodError(f"The init {name!r} {does}; merge it to a folder and give that as init: {{model: FOLDER}}.")
    try:
        values = chosen.resolve(parameters, plan.names)
        chosen.check_models(len(plan.names), plan.base is not None, values)
    except MergeLabError as error:
        raise MethodError(f"The init {name!r}: {error}") from None
    return dataclasses.replace(plan, method=chosen, values=values, start=None, out_dtype=None, recipe=None)


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(t, torch.Tensor) for t in value.values())


def _checkpoint(plan: Plan, value: Any, load: Any) -> Any:
    from .plan import opened

    base = plan.base if plan.space != ADAPTER else plan.models[0].adapter.base
    try:
        checkpoint = own_space(plan, opened(value, name="init", base=base, load=load))
    except MergeLabError as error:
        raise MethodError(f"The init: {error}") from None
    found = compare(plan.reference, "the base" if plan.base is not None else "every model", [("init", checkpoint)])
    for problem in found.problems:
        text = problem.text.replace("Model 'init'", "The init").replace("model 'init'", "the init")
        raise MethodError(f"{text} Give a merge of these models as init.")
    return checkpoint


def _or(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:-1])) + f" or {names[-1]!r}" if len(names) > 1 else repr(names[0])
