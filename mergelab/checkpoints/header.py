"""Reading and checking the header of a safetensors file, before any of its weights are touched.

Layout of a file: 8 bytes little-endian header length, the header (a JSON object: tensor name -> dtype, shape,
data_offsets; optionally ``__metadata__`` with strings), then the tensors' bytes without a gap.
Reference: https://huggingface.co/docs/safetensors/index#format. Everything the reference loader rejects is rejected
here with a sentence, and so is what it lets through: a key that comes twice, unknown fields, names that cannot be
shown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from ..errors import CheckpointError
from .dtypes import BITS
from .recognise import what_it_is

#: Real headers stay far below (the Hub uses the same cap); a larger one is an attempt to exhaust memory.
MAX_HEADER = 25_000_000
#: No dimension or size in a real file needs more; keeps products small enough to compute.
_MAX_INT = 2**63 - 1
_FIELDS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor without reading it.

    ``dtype`` is a safetensors code (``"F32"``), ``shape`` in elements, ``nbytes`` of the packed tensor, ``origin`` says
    where it comes from in words (a file name, or how it is made).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    origin: str


@dataclass(frozen=True)
class Header:
    """A checked header: tensors, where their bytes are in the file (absolute), strings beside them, the file's size."""

    infos: dict[str, TensorInfo]
    spans: dict[str, tuple[int, int]]
    metadata: dict[str, str] = field(default_factory=dict)
    size: int = 0


def read_header(path: Path, where: str | None = None) -> Header:
    """Read and check the header of the file at ``path``; ``where`` is how messages call it (default: its name)."""
    where = where or path.name
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            start = file.read(512)
            length = header_length(start, size, where)
            raw = (start + file.read(max(0, 8 + length - len(start))))[8 : 8 + length]
    except OSError as error:
        raise CheckpointError(f"{where} cannot be read: {error.strerror or error}.") from error
    return parse_header(raw, size, where)


def header_length(start: bytes, size: int, where: str) -> int:
    """The header's length from a file's first bytes (at least 9 of them when it has as many) and its total size.

    Says what the file is when it is something else: a Git-LFS pointer, an HTML page, a pickle, GGUF, nothing.
    """
    if size == 0:
        raise CheckpointError(f"{where} is empty (0 bytes): download it again.")
    length = int.from_bytes(start[:8], "little")
    if size < 9 or length > MAX_HEADER or start[8:9] != b"{":
        other = what_it_is(start)
        if other:
            raise CheckpointError(f"{where} is {other}")
    if size < 9:
        raise CheckpointError(f"{where} has only {size} bytes, too few for a safetensors file: download it again.")
    if length < 2:
        raise CheckpointError(f"{where} is not a safetensors file: it announces a header of {length} bytes.")
    if length > MAX_HEADER:
        raise CheckpointError(
            f"{where} is not a safetensors file, or is damaged: it announces a header of {length:,} bytes "
            f"(at most {MAX_HEADER:,}). Download it again."
        )
    if 8 + length > size:
        raise CheckpointError(
            f"{where} is cut short: it has {size:,} bytes and its header alone needs {8 + length:,}. Download it again."
        )
    return length


def parse_header(raw: bytes, size: int | None, where: str) -> Header:
    """Check a header's JSON bytes against the whole file's ``size`` (``None``: not known, as in a bare listing)."""
    _require(raw[:1] == b"{", where, "its header does not begin with '{'")
    entries = _load_json(raw, where)
    metadata = _metadata(entries.pop("__metadata__", {}), where)
    base = 8 + len(raw)
    infos: dict[str, TensorInfo] = {}
    spans: dict[str, tuple[int, int]] = {}
    for name, entry in entries.items():
        info, (begin, end) = _entry(name, entry, where)
        infos[name] = info
        spans[name] = (base + begin, base + end)
    end = _check_layout(spans, base, where)
    if size is not None and end > size:
        raise CheckpointError(f"{where} is cut short: it has {size:,} bytes of {end:,}. Download it again.")
    if size is not None and end < size:
        raise CheckpointError(
            f"{where} is malformed: {size - end:,} bytes follow its last tensor. Download or save it again."
        )
    return Header(infos, spans, metadata, end)


def load_json_object(raw: bytes, where: str) -> dict[str, Any]:
    """Strict JSON for what comes with a checkpoint: UTF-8, an object, no key twice, no NaN, no deep nesting."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(items)
        if len(out) < len(items):
            seen: set[str] = set()
            twice = next(key for key, _ in items if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise CheckpointError(f"{where} is malformed: the key {shown(twice)} comes twice.")
        return out

    def constant(text: str) -> NoReturn:
        raise CheckpointError(f"{where} is malformed: {text} is not a JSON value.")

    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant)
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{where} is malformed: it is not UTF-8 text.") from error
    except RecursionError as error:
        raise CheckpointError(f"{where} is malformed: its JSON is nested too deeply.") from error
    except ValueError as error:  # JSONDecodeError, and integers with thousands of digits
        raise CheckpointError(f"{where} is malformed: it is not valid JSON ({str(error)[:120]}).") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} is malformed: a JSON object was expected, a {_json_type(value)} found.")
    return value


def shown(name: object) -> str:
    """A name from a file, quoted and escaped so that it can stand in a message."""
    text = ascii(name) if not (isinstance(name, str) and name.isprintable()) else repr(name)
    return text if len(text) <= 120 else text[:100] + "…" + text[-10:]


def _load_json(raw: bytes, where: str) -> dict[str, Any]:
    try:
        return load_json_object(raw, where)
    except CheckpointError as error:
        raise CheckpointError(
            str(error).replace(f"{where} is malformed:", f"{where} is malformed: in its header,")
        ) from (error.__cause__)


def _metadata(value: Any, where: str) -> dict[str, str]:
    _require(isinstance(value, dict), where, "__metadata__ is not an object")
    for key, text in value.items():
        _require(
            isinstance(text, str), where, f"__metadata__ has a {_json_type(text)} under {shown(key)}, not a string"
        )
    return value


def _entry(name: str, entry: Any, where: str) -> tuple[TensorInfo, tuple[int, int]]:
    who = f"tensor {shown(name)}"
    _require(
        bool(name) and name.isprintable(), where, f"the tensor name {shown(name)} has characters that cannot be shown"
    )
    _require(isinstance(entry, Mapping), where, f"{who} is a {_json_type(entry)}, not an object")
    missing, extra = _FIELDS - entry.keys(), entry.keys() - _FIELDS
    _require(not missing, where, f"{who} has no {', '.join(sorted(missing))}")
    _require(not extra, where, f"{who} has an unknown field {', '.join(shown(key) for key in sorted(extra))}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    _require(isinstance(dtype, str) and dtype in BITS, where, f"{who} has the unknown dtype {shown(dtype)}")
    _require(_sizes(shape), where, f"{who} has the shape {shown(shape)}; sizes must be whole numbers, 0 or more")
    _require(
        _sizes(offsets) and len(offsets) == 2 and offsets[0] <= offsets[1],
        where,
        f"{who} has the data_offsets {shown(offsets)}; expected [begin, end] with 0 <= begin <= end",
    )
    bits = BITS[dtype]
    for length in shape:
        bits *= length
        # The reference multiplies left to right and refuses an overflow even when a later 0 would hide it.
        _require(bits <= 8 * _MAX_INT, where, f"{who} has the impossible shape {shown(shape)}")
    _require(bits % 8 == 0, where, f"{who} does not end on a whole byte ({dtype}, shape {shown(shape)})")
    _require(
        bits // 8 == offsets[1] - offsets[0],
        where,
        f"{who} takes {offsets[1] - offsets[0]:,} bytes, but {dtype} of shape {shown(shape)} needs {bits // 8:,}",
    )
    return TensorInfo(name, dtype, tuple(shape), bits // 8, where), (offsets[0], offsets[1])


def _check_layout(spans: Mapping[str, tuple[int, int]], base: int, where: str) -> int:
    """Tensors lie one after the other without hole or overlap; the end of the last one (absolute)."""
    position = base
    for name, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
        problem = "overlaps the one before it" if begin < position else "leaves a hole before it"
        _require(begin == position, where, f"tensor {shown(name)} {problem}")
        position = end
    return position


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= _MAX_INT for item in value)


def _json_type(value: object) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "true/false", int: "number", float: "number"}
    return names.get(type(value), "null")


def _require(condition: bool, where: str, problem: str) -> None:
    if not condition:
        raise CheckpointError(f"{where} is malformed: {problem}. Download or save it again.")
