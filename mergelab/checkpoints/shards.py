"""The files of a checkpoint folder that is being written: headers known beforehand, one tensor in memory at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import CheckpointError
from ..progress import Progress, Stop, report
from .checkpoint import raw_bytes
from .dtypes import dtype_code, nbytes_of
from .header import shown

if TYPE_CHECKING:
    import torch

#: tensor name -> (dtype code, shape), in the order in which the tensors are laid out
Plan: TypeAlias = Mapping[str, tuple[str, tuple[int, ...]]]
_CHUNK = 1 << 30
_O_BINARY = getattr(os, "O_BINARY", 0)


def split(plan: Plan, max_shard_bytes: float) -> dict[str, list[str]]:
    """File name -> names of its tensors, in the plan's order; above ``max_shard_bytes`` only single tensors."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, entry in plan.items():
        nbytes = nbytes_of(*entry)
        if groups[-1] and size + nbytes > max_shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += nbytes
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": names for i, names in enumerate(groups, 1)}


@dataclass
class ShardWriter:
    """Writes planned tensors, in whatever order they come, into the shards of ``folder``."""

    folder: Path
    plan: Plan
    shards: Mapping[str, list[str]]
    metadata: Mapping[str, str]
    allow_nonfinite: bool = False
    _file_of: dict[str, str] = field(default_factory=dict)
    _begin: dict[str, int] = field(default_factory=dict)
    _headers: dict[str, bytes] = field(default_factory=dict)
    _handles: dict[str, int] = field(default_factory=dict)
    _written: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        for file, names in self.shards.items():
            self._headers[file] = self._lay_out(names)
            self._file_of.update(dict.fromkeys(names, file))

    def write(
        self, tensors: Iterable[tuple[str, torch.Tensor]], progress: Progress | None = None, stop: Stop | None = None
    ) -> None:
        """Write all tensors and flush every file to the disk. Raises CheckpointError for one that is not as planned."""
        left = {file: len(names) for file, names in self.shards.items()}
        try:
            for name, tensor in tensors:
                if stop is not None:
                    stop.check()
                file = self.put(name, tensor)
                left[file] -= 1
                if not left[file]:
                    self._finish(file)
                report(progress, len(self._written), len(self.plan), f"writing {name}")
        finally:
            self.close()
        self.require_all()

    def put(self, name: str, tensor: torch.Tensor) -> str:
        """Write one tensor at its place and return its file's name; CheckpointError if it is not as planned."""
        self._check(name, tensor)
        file = self._file_of[name]
        write_at(self._handle(file), raw_bytes(tensor.cpu()), self._begin[name])
        self._written.add(name)
        return file

    def close(self) -> None:
        """Close what is open, finished or not."""
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()

    def require_all(self) -> None:
        """Raise CheckpointError unless every planned tensor was written."""
        missing = [name for name in self.plan if name not in self._written]
        if missing:
            raise CheckpointError(
                f"{len(missing)} planned tensors were never made, such as {shown(missing[0])}. Nothing was written."
            )

    def write_index(self) -> None:
        """Where there are several shards, the index: the last file, without which they do not load."""
        if len(self.shards) > 1:
            total = sum(nbytes_of(*entry) for entry in self.plan.values())
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(self._file_of.items()))}
            write_file(
                self.folder / "model.safetensors.index.json", json.dumps(index, indent=2, ensure_ascii=False) + "\n"
            )

    def _lay_out(self, names: list[str]) -> bytes:
        """A file's first bytes, padded to 8 as the format asks; notes where each of its tensors begins."""
        entries: dict[str, Any] = {"__metadata__": dict(self.metadata)}
        end = 0
        for name in names:
            begin, (code, shape) = end, self.plan[name]
            end = begin + nbytes_of(code, tuple(shape))
            entries[name] = {"dtype": code, "shape": list(shape), "data_offsets": [begin, end]}
        text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._begin.update({name: 8 + len(text) + entries[name]["data_offsets"][0] for name in names})
        return len(text).to_bytes(8, "little") + text

    def _handle(self, file: str) -> int:
        if file not in self._handles:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _O_BINARY
            self._handles[file] = os.open(self.folder / file, flags, 0o644)
            write_at(self._handles[file], memoryview(self._headers[file]), 0)
        return self._handles[file]

    def _finish(self, file: str) -> None:
        handle = self._handles.pop(file)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def _check(self, name: str, tensor: torch.Tensor) -> None:
        if name not in self.plan or name in self._written:
            why = "comes twice" if name in self._written else "is not in the plan"
            raise CheckpointError(f"Tensor {shown(name)} {why}. Nothing was written.")
        code, shape = self.plan[name]
        if dtype_code(tensor.dtype) != code or tuple(tensor.shape) != tuple(shape):
            raise CheckpointError(
                f"Tensor {shown(name)} is {dtype_code(tensor.dtype)} {list(tensor.shape)}, and {code} {list(shape)} "
                "was planned. Nothing was written."
            )
        bad = 0 if self.allow_nonfinite else nonfinite(tensor)
        if bad:
            raise CheckpointError(
                f"Tensor {shown(name)} has {bad:,} values that are NaN or infinite as {code}; nothing was written. "
                "Check the models, or write in float32."
            )


def nonfinite(tensor: torch.Tensor) -> int:
    """How many values of a tensor are NaN or infinite."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return 0
    if tensor.element_size() == 1:  # float8 knows no isfinite
        tensor = tensor.float()
    return tensor.numel() - int(tensor.isfinite().sum())


def write_at(handle: int, data: memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset`` of an open file."""
    done = 0
    while done < len(data):
        part = data[done : done + _CHUNK]
        if hasattr(os, "pwrite"):
            done += os.pwrite(handle, part, offset + done)
        else:
            os.lseek(handle, offset + done, os.SEEK_SET)
            done += os.write(handle, part)


def write_file(path: Path, content: bytes | str) -> None:
    """A small new file, flushed to the disk."""
    with path.open("xb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
