"""Statistics of tasks: what a little data says about which directions of a weight matter. Tensors and files only."""

from __future__ import annotations

from .block import FIELDS, KINDS, LAYOUTS, Block, inputs_of, outputs_of
from .checks import check_block
from .match import Matched, matched
from .store import read, read_folder, write
from .task import FISHERS, Entry, TaskStatistics

__all__ = [
    "FIELDS",
    "FISHERS",
    "KINDS",
    "LAYOUTS",
    "Block",
    "Entry",
    "Matched",
    "TaskStatistics",
    "check_block",
    "inputs_of",
    "matched",
    "outputs_of",
    "read",
    "read_folder",
    "write",
]
