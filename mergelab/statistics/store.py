"""Statistics on disk: one safetensors file a task, read lazily, and never trusted.

Tensors are ``<tensor>/inputs``, ``/outputs``, ``/diagonal``, ``/full``, ``/mean``. What they belong to stands in the
file's metadata under ``mergelab_statistics``, as JSON with ``"format": "mergelab-statistics/1"``: task, checkpoint name
and hash, split, counts, Fisher kind, seed, and for each tensor its shape, layout, rows and examples. Layers that see
the same inputs (query, key, value) have the same A; it is stored once and the others name its owner.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoints import dtype_code
from ..checkpoints.checkpoint import raw_bytes
from ..checkpoints.header import shown
from ..checkpoints.reader import FileCheckpoint
from ..checkpoints.shards import Plan, ShardWriter
from ..checkpoints.whole import whole_file
from ..errors import CheckpointError, StatisticsError
from ..progress import Progress, Stop
from .block import KINDS, PIECES
from .head import KEY, Head, parse_head
from .task import TaskStatistics

if TYPE_CHECKING:
    from torch import Tensor

ENDING = ".safetensors"


def write(
    statistics: TaskStatistics,
    path: str | Path,
    *,
    overwrite: bool = True,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Path:
    """Write one task's statistics to the file ``path``, all or nothing, and return it. What was there is replaced.

    Every block is checked first; raises StatisticsError for one that cannot be statistics and for a task without any,
    CheckpointError when the disk is full.
    """
    out = Path(path).expanduser().resolve()
    if not len(statistics):
        raise StatisticsError(f"{statistics.where}: there are no statistics of any tensor to write.")
    plan, owners = _plan(statistics)
    head = Head.of(statistics, owners)
    try:
        text = json.dumps(head.to_dict(), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StatisticsError(f"{statistics.where}: their notes are no plain JSON data: {error}.") from None
    need = sum(statistics.entries[name].nbytes() for name in statistics.names)
    with whole_file(out, overwrite=overwrite, need=need, verify=_verify) as partial:
        writer = ShardWriter(partial.parent, plan, {partial.name: list(plan)}, {"format": "pt", KEY: text})
        writer.write(_stored(statistics, owners), progress, stop)
    return out


def read(path: str | Path) -> TaskStatistics:
    """The statistics in a file; blocks are read from it when they are asked for.

    Nothing in the file is trusted: its header, the JSON in it, every shape and count are checked now, the numbers of a
    block when it is read. Raises StatisticsError.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise StatisticsError(f"There is no file {str(path)[:200]!r} with statistics.")
    pieces = _File(path)
    head = parse_head(pieces.metadata.get(KEY), pieces.shapes, path.name)
    pieces.owners = head.owners
    return TaskStatistics(
        head.task, name=head.name, weights_hash=head.weights_hash, split=head.split, examples=head.examples,
        fisher=head.fisher, seed=head.seed, suite=head.suite, meta=head.meta, skipped=head.skipped,
        where=path.name, entries=head.entries, pieces=pieces,
    )  # fmt: skip


def read_folder(folder: str | Path) -> dict[str, TaskStatistics]:
    """Task name -> its statistics, for every ``*.safetensors`` of a folder, in the order of the file names."""
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise StatisticsError(
            f"There is no folder {str(folder)[:200]!r} with statistics. Make it first: "
            "python -m mergelab stats zoo:starter --kinds gram,kfac,diag --out DIR."
        )
    found: dict[str, TaskStatistics] = {}
    files: dict[str, str] = {}
    for path in sorted(place.glob(f"*{ENDING}")):
        statistics = read(path)
        if statistics.task in found:
            raise StatisticsError(
                f"{path.name} and {files[statistics.task]} are both of the task {shown(statistics.task)}: keep one."
            )
        found[statistics.task], files[statistics.task] = statistics, path.name
    if not found:
        raise StatisticsError(f"The folder {place.name} has no statistics (no *{ENDING} file): name another.")
    return found


class _File:
    """The tensors of one file, converted errors and all."""

    def __init__(self, path: Path) -> None:
        self._where = path.name
        try:
            self._file = FileCheckpoint({path.name: path}, name=path.name, source=str(path))
        except CheckpointError as error:
            raise StatisticsError(str(error)) from error
        self.metadata = self._file.metadata
        self.shapes = {key: (info.dtype, info.shape) for key, info in self._file.infos.items()}
        self.owners: Mapping[str, str] = {}

    def read(self, name: str, piece: str) -> Tensor:
        owner = self.owners.get(name, name) if piece in PIECES["gram"] else name
        try:
            return self._file[f"{owner}/{piece}"]
        except CheckpointError as error:
            raise StatisticsError(str(error)) from error

    def close(self) -> None:
        self._file.close()


def _plan(statistics: TaskStatistics) -> tuple[Plan, dict[str, str]]:
    """What is stored, and for tensors whose A (and mean) another has to the bit: that other's name."""
    plan: dict[str, tuple[str, tuple[int, ...]]] = {}
    first: dict[str, str] = {}
    owners: dict[str, str] = {}
    for name in statistics.names:
        block = statistics.block(name, KINDS)
        assert block is not None
        tensors = block.tensors
        if "inputs" in tensors:
            owner = first.setdefault(_digest(tensors), name)
            if owner != name:
                owners[name] = owner
        for piece, tensor in tensors.items():
            if not (name in owners and piece in PIECES["gram"]):
                plan[f"{name}/{piece}"] = (dtype_code(tensor.dtype), tuple(tensor.shape))
    return plan, owners


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for piece in PIECES["gram"]:
        tensor = tensors.get(piece)
        digest.update(b"-" if tensor is None else f"{tensor.dtype}{tuple(tensor.shape)}\0".encode())
        if tensor is not None:
            digest.update(raw_bytes(tensor.cpu()))
    return digest.hexdigest()


def _stored(statistics: TaskStatistics, owners: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    for name in statistics.names:
        block = statistics.block(name, KINDS)
        assert block is not None
        for piece, tensor in block.tensors.items():
            if not (name in owners and piece in PIECES["gram"]):
                yield f"{name}/{piece}", tensor


def _verify(path: Path) -> None:
    read(path).close()
