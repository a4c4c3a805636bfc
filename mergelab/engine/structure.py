"""Do the checkpoints fit together? Names, shapes and dtypes are compared from headers alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FLOATS = ("F64", "F32", "F16", "BF16")
_COPIED = ("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64")
_SHOWN = 5


@dataclass(frozen=True)
class Item:
    """One tensor of the result. ``merge`` is false for integer and boolean buffers: the reference's are copied."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    merge: bool

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Problem:
    """Something that keeps a merge from running, in words, with the cure."""

    text: str
    fix: str


@dataclass(frozen=True)
class Structure:
    """What the merge is made of: the tensors, the names tied to another tensor, and what does not fit."""

    items: tuple[Item, ...]
    aliases: Mapping[str, str]
    problems: tuple[Problem, ...]


def compare(reference: Any, reference_name: str, models: Sequence[tuple[str, Any]]) -> Structure:
    """Compare the headers of every model with the reference's (the base, or the first model).

    ``reference`` and the models are checkpoints with ``infos`` and ``aliases``. A name is tied in the result when it is
    tied to the same tensor everywhere; a name that is tied in some only is merged as a tensor of its own.
    """
    aliases = dict(getattr(reference, "aliases", {}))
    for _, model in models:
        theirs = getattr(model, "aliases", {})
        aliases = {name: target for name, target in aliases.items() if theirs.get(name) == target}
    expected = headers(reference)
    problems: list[Problem] = []
    for name, model in models:
        problems += _differences(expected, reference_name, headers(model), name)
    items = []
    for name, info in sorted(expected.items()):
        if name in aliases:
            continue
        if info.dtype not in FLOATS + _COPIED:
            problems.append(Problem(
                f"Tensor {name!r} of {reference_name} is stored as {info.dtype}, which cannot be averaged.",
                "Convert the checkpoint to float32, float16 or bfloat16 first.",
            ))  # fmt: skip
        items.append(Item(name, tuple(info.shape), info.dtype, info.dtype in FLOATS and math.prod(info.shape) > 0))
    if not items:
        problems.append(Problem(f"{reference_name} holds no tensors.", "Choose a checkpoint with weights."))
    return Structure(tuple(items), aliases, tuple(problems))


def headers(checkpoint: Any) -> dict[str, Any]:
    """Name -> header of every tensor a checkpoint can give, tied names included."""
    infos = dict(checkpoint.infos)
    for name, target in getattr(checkpoint, "aliases", {}).items():
        if name not in infos and target in infos:
            infos[name] = infos[target]
    return infos


def _differences(expected: Mapping[str, Any], reference: str, found: Mapping[str, Any], name: str) -> list[Problem]:
    out = []
    missing = sorted(expected.keys() - found.keys())
    extra = sorted(found.keys() - expected.keys())
    if missing:
        out.append(Problem(
            f"Model {name!r} lacks {_count(missing, 'tensor')} that {reference} has: {_list(missing)}.",
            "Merge checkpoints of one architecture, fine-tuned from the same base.",
        ))  # fmt: skip
    if extra:
        out.append(Problem(
            f"Model {name!r} has {_count(extra, 'tensor')} that {reference} lacks: {_list(extra)}.",
            "Save the model without its task head, or choose the base that it was fine-tuned from.",
        ))  # fmt: skip
    for tensor in sorted(expected.keys() & found.keys()):
        wanted, got = expected[tensor], found[tensor]
        if tuple(wanted.shape) != tuple(got.shape):
            out.append(Problem(
                f"Tensor {tensor!r} of model {name!r} has shape {_shape(got.shape)}, but {_shape(wanted.shape)} in "
                f"{reference}.",
                "Merge checkpoints of one size and vocabulary.",
            ))  # fmt: skip
        elif (wanted.dtype in FLOATS) != (got.dtype in FLOATS):
            out.append(Problem(
                f"Tensor {tensor!r} of model {name!r} is stored as {got.dtype}, but as {wanted.dtype} in {reference}.",
                "Convert the checkpoints to one floating-point dtype (quantised weights cannot be merged).",
            ))  # fmt: skip
    return out


def _count(names: Sequence[str], noun: str) -> str:
    return f"{len(names)} {noun}{'s' if len(names) > 1 else ''}"


def _list(names: Iterable[str]) -> str:
    names = list(names)
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a single number"
