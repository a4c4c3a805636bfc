"""The JSON header of a statistics file, made and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..checkpoints.header import load_json_object, shown
from ..errors import CheckpointError, StatisticsError
from .block import FIELDS, LAYOUTS, PIECES
from .checks import check_counts, check_sizes
from .task import FISHERS, Entry

if TYPE_CHECKING:
    from .task import TaskStatistics

FORMAT = "mergelab-statistics/1"
KEY = "mergelab_statistics"
_FLOATS = {"F32": 4, "F64": 8, "F16": 2, "BF16": 2}
_MOST = 2**53
_TEXTS = ("task", "name", "weights_hash", "split", "fisher", "suite")
_NUMBERS = ("examples", "seed")
_KEYS = {"format", "version", "kinds", "meta", "skipped", "blocks", *_TEXTS, *_NUMBERS}
_BLOCK_KEYS = {"layout", "shape", "rows", "examples", "inputs_of"}


@dataclass(frozen=True)
class Head:
    """What a file says about its statistics. ``owners``: tensor -> the one whose A (and mean) it shares."""

    task: str
    name: str = ""
    weights_hash: str = ""
    split: str = ""
    examples: int = 0
    fisher: str = ""
    seed: int = 0
    suite: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    entries: Mapping[str, Entry] = field(default_factory=dict)
    owners: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, statistics: TaskStatistics, owners: Mapping[str, str]) -> Head:
        s = statistics
        return cls(s.task, s.name, s.weights_hash, s.split, s.examples, s.fisher, s.seed, s.suite,
                   s.meta, s.skipped, s.entries, owners)  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        from .. import __version__

        blocks = {}
        for name, entry in self.entries.items():
            said: dict[str, Any] = {"layout": entry.layout, "rows": entry.rows, "examples": entry.examples}
            if entry.shape is not None:
                said["shape"] = list(entry.shape)
            if name in self.owners:
                said["inputs_of"] = self.owners[name]
            blocks[name] = said
        kinds = sorted({kind for entry in self.entries.values() for kind in entry.kinds})
        return {
            "format": FORMAT, "version": __version__, **{key: getattr(self, key) for key in (*_TEXTS, *_NUMBERS)},
            "kinds": kinds, "meta": dict(self.meta), "skipped": dict(self.skipped), "blocks": blocks,
        }  # fmt: skip


def parse_head(text: str | None, stored: Mapping[str, tuple[str, tuple[int, ...]]], where: str) -> Head:
    """Check a header against the tensors that the file has (name -> dtype code, shape)."""
    if text is None:
        raise StatisticsError(
            f"{where} is no statistics file: its metadata has no {KEY}. Make one with python -m mergelab stats."
        )
    try:
        said = load_json_object(text.encode("utf-8", "surrogatepass"), f"{where} ({KEY})")
    except CheckpointError as error:
        raise StatisticsError(str(error)) from error
    if said.get("format") != FORMAT:
        raise StatisticsError(
            f"{where} has the format {shown(said.get('format'))}, and {FORMAT!r} is what can be read; collect the "
            "statistics again."
        )
    _check_keys(said, where)
    entries, owners = _entries(said["blocks"], stored, where)
    kinds = sorted({kind for entry in entries.values() for kind in entry.kinds})
    _require(said["kinds"] == kinds, where, f"it says {shown(said['kinds'])} as kinds and holds {shown(kinds)}")
    values = {key: said[key] for key in (*_TEXTS, *_NUMBERS)}
    return Head(**values, meta=said["meta"], skipped=said["skipped"], entries=entries, owners=owners)


def _check_keys(said: Mapping[str, Any], where: str) -> None:
    for key in sorted(_KEYS - said.keys()):
        _require(False, where, f"it has no {key!r}")
    for key in sorted(said.keys() - _KEYS):
        _require(False, where, f"it has an unknown key {shown(key)}")
    for key in (*_TEXTS, "version"):
        good = isinstance(said[key], str) and len(said[key]) <= 1000
        _require(good, where, f"{key!r} is {shown(said[key])}, a text was expected")
    _require(bool(said["task"]) and said["task"].isprintable(), where, f"'task' is {shown(said['task'])}")
    _require(said["fisher"] in FISHERS, where, f"'fisher' is {shown(said['fisher'])}, one of {FISHERS} was expected")
    for key in _NUMBERS:
        _require(_whole(said[key]), where, f"{key!r} is {shown(said[key])}, a whole number was expected")
    for key in ("meta", "skipped", "blocks"):
        _require(isinstance(said[key], dict), where, f"{key!r} is {shown(said[key])}, an object was expected")
    texts = all(isinstance(reason, str) for reason in said["skipped"].values())
    _require(texts, where, "'skipped' has reasons that are no text")


def _entries(
    blocks: Mapping[str, Any], stored: Mapping[str, tuple[str, tuple[int, ...]]], where: str
) -> tuple[dict[str, Entry], dict[str, str]]:
    held = _held(blocks, stored, where)
    owners: dict[str, str] = {}
    for name, said in blocks.items():
        _require(isinstance(said, dict), where, f"the entry of tensor {shown(name)} is {shown(said)}")
        for key in sorted(said.keys() - _BLOCK_KEYS):
            _require(False, where, f"the entry of tensor {shown(name)} has an unknown key {shown(key)}")
        owner = said.get("inputs_of")
        if owner is not None:
            good = isinstance(owner, str) and owner != name and "inputs" in held.get(owner, {})
            _require(good, where, f"tensor {shown(name)} shares the inputs of {shown(owner)}, which has none")
            _require("inputs" not in held[name], where, f"tensor {shown(name)} has inputs and shares others")
            owners[name] = owner
    for name, owner in owners.items():
        held[name].update({key: held[owner][key] for key in PIECES["gram"] if key in held[owner]})
    return {name: _entry(name, said, held[name], where) for name, said in blocks.items()}, owners


def _held(
    blocks: Mapping[str, Any], stored: Mapping[str, tuple[str, tuple[int, ...]]], where: str
) -> dict[str, dict[str, tuple[str, tuple[int, ...]]]]:
    """Tensor -> piece -> (dtype code, shape), from the names in the file."""
    held: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {name: {} for name in blocks}
    for key, (code, shape) in stored.items():
        name, _, piece = key.rpartition("/")
        _require(piece in FIELDS and name in held, where, f"it holds {shown(key)}, which its header does not list")
        _require(code in _FLOATS, where, f"{shown(key)} is stored as {code}, F32 was expected")
        held[name][piece] = (code, shape)
    return held


def _entry(name: str, said: Mapping[str, Any], pieces: Mapping[str, tuple[str, tuple[int, ...]]], where: str) -> Entry:
    who = f"{where}, tensor {shown(name)}"
    _require(bool(pieces), where, f"it lists tensor {shown(name)} and holds nothing of it")
    layout, rows, examples = said.get("layout"), said.get("rows"), said.get("examples")
    _require(isinstance(layout, str) and layout in LAYOUTS, where, f"the layout of {shown(name)} is {shown(layout)}")
    for key, count in (("rows", rows), ("examples", examples)):
        _require(_whole(count), where, f"{key!r} of tensor {shown(name)} is {shown(count)}")
    shape = said.get("shape")
    if shape is not None:
        good = isinstance(shape, list) and len(shape) <= 8 and all(_whole(size) for size in shape)
        _require(good and math.prod(shape) <= _MOST, where, f"the shape of tensor {shown(name)} is {shown(shape)}")
        shape = tuple(shape)
    shapes = {key: size for key, (_, size) in pieces.items()}
    assert isinstance(layout, str) and isinstance(rows, int) and isinstance(examples, int)
    check_sizes(shapes, layout, shape, who)
    check_counts(shapes, rows, examples, who)
    itemsize = max(4, *(_FLOATS[code] for code, _ in pieces.values()))
    return Entry(shapes, rows, examples, layout, shape, itemsize)


def _whole(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MOST


def _require(condition: bool, where: str, problem: str) -> None:
    if not condition:
        raise StatisticsError(f"{where} is malformed: {problem}. Collect the statistics again.")
