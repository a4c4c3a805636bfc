"""Statistics that arrive block by block and need not all be in memory: each part goes to a file of its own."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import StatisticsError
from ..statistics import Block, Entry, TaskStatistics, read, write

if TYPE_CHECKING:
    from torch import Tensor


class Spilled:
    """The statistics of one task as they come; files in a temporary ``folder``, which goes when nobody needs it any
    more (None: in memory)."""

    def __init__(self, task: str, folder: tempfile.TemporaryDirectory[str] | None) -> None:
        self._task, self._folder = task, folder
        self._blocks: dict[str, Block] = {}
        self._entries: dict[str, Entry] = {}
        self._parts: list[TaskStatistics] = []
        self._part_of: dict[str, TaskStatistics] = {}

    def add(self, blocks: Mapping[str, Block]) -> None:
        """More tensors."""
        if self._folder is None:
            self._blocks.update(blocks)
        elif blocks:
            path = Path(self._folder.name) / f"{secrets.token_hex(8)}.safetensors"
            part = read(write(TaskStatistics(self._task, blocks), path))
            self._parts.append(part)
            self._entries.update(part.entries)
            self._part_of.update(dict.fromkeys(part.names, part))

    def statistics(self, **header: Any) -> TaskStatistics:
        """All of them."""
        if self._folder is None:
            return TaskStatistics(self._task, self._blocks, **header)
        return TaskStatistics(self._task, entries=self._entries, pieces=self, **header)

    def read(self, name: str, piece: str) -> Tensor:
        """One piece, as a file-backed :class:`TaskStatistics` asks for it."""
        block = self._part_of[name].block(name)
        found = None if block is None else getattr(block, piece)
        if found is None:
            raise StatisticsError(f"The statistics of {self._task!r} have no {piece} of {name!r} any more.")
        return found

    def close(self) -> None:
        """Give back open files."""
        for part in self._parts:
            part.close()
