"""Before a merge: can it run, what will it cost, what looks wrong. From headers, without loading a model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch

from .. import methods
from ..errors import MergeLabError
from ..recipe import Recipe
from .about_data import about_data, uses_base
from .adapters import ADAPTER, vectors_of
from .device import check_dtype, pick_device
from .estimate import estimate
from .findings import Finding, Report
from .needs import begin, gather
from .plan import Plan, checked_space, dtypes, experts, model_keys, opened, structure
from .stream import read
from .structure import FLOATS
from .workers import default_threads

#: An expert's largest tensors are compared with the base's where both are on this machine: a fine-tuned model stays
#: close.
_SAMPLES, _SAMPLE_ELEMENTS, _FAR = 3, 4_000_000, 0.5
_MARGIN = 1.1  # of the disk, for what else is written while a merge runs
_RUNNING = (".running_mean", ".running_var")
_CONFIG_KEYS = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size", "patch_size", "image_size")


def preflight(
    recipe: Recipe,
    *,
    out: str | Path | None = None,
    load: Callable[[str], Any] | None = None,
    threads: int | None = None,
    device: str = "auto",
) -> Report:
    """Say whether ``recipe`` can run and what it costs; nothing about the recipe makes this raise.

    ``out`` is the folder that it would be written to (its disk is checked; default: the current one). Hub checkpoints
    that are not downloaded are judged by their headers. All problems are listed, not just the first.
    """
    findings: list[Finding] = []
    disk = shutil.disk_usage(_existing(Path(out) if out is not None else Path.cwd())).free
    try:
        plan = _planned(recipe, load, findings)
        where = pick_device(device, merging=True)
        check_dtype(where, plan.compute if plan is not None else torch.float32)
    except MergeLabError as error:
        findings.append(Finding("error", str(error)))
        plan = None
    if plan is None:
        return Report(False, tuple(findings), disk_free=disk)
    threads = threads or default_threads()
    cost = estimate(plan, threads)
    peak = cost.peak_memory + psutil.Process().memory_info().rss
    findings += [*_about_method(plan), *about_data(plan), *_about_models(plan)]
    findings += _about_machine(cost.bytes_out, peak, disk)
    merged = sum(item.merge for item in plan.items)
    findings.append(
        Finding(
            "ok",
            f"{merged} tensors are merged, {_size(cost.bytes_out)} written, in about {_time(cost.seconds)} "
            f"on {threads} core{'s' if threads > 1 else ''}, with about {_size(peak)} of memory at most.",
        )
    )
    order = {"error": 0, "warn": 1, "ok": 2}
    findings.sort(key=lambda finding: order[finding.level])
    ok = all(finding.level != "error" for finding in findings)
    return Report(ok, tuple(findings), cost.bytes_out, peak, disk, round(cost.seconds, 2), len(plan.items))


def _planned(recipe: Recipe, load: Callable[[str], Any] | None, findings: list[Finding]) -> Plan | None:
    """The plan of a recipe, or None with every problem among the findings."""
    method = methods.get(recipe.merge_method)
    entries = experts(recipe)
    names = tuple(entries)
    values: dict[str, Any] | None = None
    space = checked_space(recipe.space)
    try:
        own = {name: entry.parameters for name, entry in entries.items() if entry.parameters}
        values = method.resolve(recipe.parameters, names, own)
        method.check_models(len(names), recipe.base_model is not None or space == ADAPTER, values)
    except MergeLabError as error:
        findings.append(Finding("error", str(error)))
    base = None
    checkpoints: dict[str, Any] = {}
    for name, source in [(None, recipe.base_model)] + [(name, entry.model) for name, entry in entries.items()]:
        try:
            if name is None:
                base = opened(source, name="base", load=load) if source is not None else None
            else:
                checkpoints[name] = opened(source, name=name, base=base, load=load)
        except MergeLabError as error:
            findings.append(Finding("error", f"{'The base' if name is None else f'Model {name!r}'}: {error}"))
    if findings:
        return None
    if space == ADAPTER:
        base, vectors = vectors_of(names, tuple(checkpoints.values()))
        checkpoints = dict(zip(names, vectors, strict=True))
    found = structure(base, names, tuple(checkpoints.values()))
    findings += [Finding("error", problem.text, problem.fix) for problem in found.problems]
    if findings or values is None:
        return None
    compute, out_code = dtypes(recipe.dtype, recipe.out_dtype)
    keys = model_keys(entry.model for entry in entries.values())
    made = Plan(
        method, names, tuple(checkpoints.values()), base, values, found.items, found.aliases, keys, compute, out_code,
        recipe.seed, recipe, space=space,
    )  # fmt: skip
    try:
        return gather(begin(made, recipe.init, load=load), recipe.statistics)
    except MergeLabError as error:
        findings.append(Finding("error", str(error)))
        return None


def _about_method(plan: Plan) -> Iterator[Finding]:
    if plan.base is not None and not uses_base(plan):
        yield Finding(
            "ok",
            f"{plan.method.title} does not use the base's weights; its dtypes, buffers and configuration "
            "are taken over.",
        )
    if plan.method.promises.random:
        yield Finding(
            "ok",
            f"{plan.method.title} draws at random: seed {plan.seed} always gives the same result, another "
            "seed gives another one.",
        )
    copied = sum(not item.merge for item in plan.items)
    if copied:
        yield Finding(
            "ok",
            f"{copied} integer, boolean or empty tensors are copied from the "
            f"{'base' if plan.base is not None else 'first model'}, not merged.",
        )
    if plan.aliases:
        yield Finding("ok", f"{len(plan.aliases)} tied tensors are merged once and stay tied.")
    running = [item.name for item in plan.items if item.merge and item.name.endswith(_RUNNING)]
    if running:
        yield Finding(
            "warn",
            f"{len(running)} tensors are running means and variances of batch normalisation, such as {running[0]!r}: "
            "the merged model's activations have others than what comes out here.",
            "Pass some inputs through the merged model in training mode before it is used, so that they are new.",
        )
    wide = {plan.code(item) for item in plan.items if item.merge}
    if wide & {"F16"} and any(_code(model, item.name) == "BF16" for model in plan.models for item in plan.items[:50]):
        yield Finding(
            "warn",
            "Some models are stored in bfloat16 and the result in float16, which holds smaller numbers.",
            "Set out_dtype to bfloat16 if the merge reports numbers that do not fit.",
        )


def _about_models(plan: Plan) -> Iterator[Finding]:
    count = len(plan.models) + (plan.base is not None)
    yield Finding(
        "ok", f"{count} checkpoint{'s have' if count > 1 else ' has'} the same {len(plan.items)} tensors and shapes."
    )
    remote = [
        model
        for model in (plan.base, *plan.models)
        if model is not None and hasattr(model, "fetch") and not model.folder
    ]
    if remote:
        yield Finding("ok", f"{_size(sum(model.nbytes for model in remote))} are downloaded from the Hub first.")
    expected = plan.reference.config or {}
    for name, model in zip(plan.names, plan.models, strict=True):
        theirs = model.config or {}
        for key in _CONFIG_KEYS:
            if key in expected and key in theirs and expected[key] != theirs[key]:
                yield Finding(
                    "warn",
                    f"Model {name!r} says {key} = {theirs[key]!r}, the checkpoint it is merged with {expected[key]!r}.",
                    "Check that both are of one architecture.",
                )
                break
        far = _distance(plan, model)
        if far is not None and far > _FAR:
            yield Finding(
                "warn",
                f"Model {name!r} differs from the base by {far:.0%} of its weights' norm: it does not look "
                "fine-tuned from this base.",
                "Choose the base that it was fine-tuned from; a merge of unrelated models rarely works.",
            )


def _distance(plan: Plan, model: Any) -> float | None:
    """‖θ_t − θ0‖ / ‖θ0‖ over a few large tensors, or None where the weights are not on this machine."""
    base = plan.base
    if base is None or not (_local(base) and _local(model)):
        return None
    sizes = sorted(((item.numel, item.name) for item in plan.items if item.merge), reverse=True)
    picked = [name for numel, name in sizes if numel <= _SAMPLE_ELEMENTS][:_SAMPLES]
    apart = norm = 0.0
    try:
        for name in picked:
            ours = read(base, name).double()
            apart += float((read(model, name).double() - ours).square().sum())
            norm += float(ours.square().sum())
    except MergeLabError:  # damaged weights are reported by the merge, which reads all of them
        return None
    return (apart / norm) ** 0.5 if norm > 0 else None


def _local(checkpoint: Any) -> bool:
    return not hasattr(checkpoint, "fetch") and not str(checkpoint.source).startswith("hub:")


def _about_machine(bytes_out: int, peak: int, disk: int) -> Iterator[Finding]:
    available = psutil.virtual_memory().available
    if peak > available:
        yield Finding(
            "warn",
            f"The merge needs about {_size(peak)} of memory and {_size(available)} are free.",
            "Close other programs, or use fewer threads.",
        )
    if bytes_out * _MARGIN > disk:
        yield Finding(
            "error",
            f"Writing needs {_size(int(bytes_out * _MARGIN))} of disk and {_size(disk)} are free.",
            "Free some space, choose a folder on another disk, or set out_dtype to bfloat16.",
        )


def _existing(path: Path) -> Path:
    path = path.expanduser().absolute()
    while not os.path.exists(path):
        path = path.parent
    return path


def _code(checkpoint: Any, name: str) -> str:
    info: Any = checkpoint.infos.get(name)
    return info.dtype if info is not None and info.dtype in FLOATS else ""


def _size(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{int(count)} bytes"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
