"""Checkpoints: named tensors, read lazily from files, folders, zoos and the Hub, and written whole or not at all."""

from __future__ import annotations

from .checkpoint import Checkpoint, MemoryCheckpoint
from .dtypes import FLOATS, dtype_code, nbytes_of, torch_dtype
from .header import TensorInfo
from .sources import load, zoo_folders, zoo_path
from .write import sweep, write

__all__ = [
    "FLOATS",
    "Checkpoint",
    "MemoryCheckpoint",
    "TensorInfo",
    "dtype_code",
    "load",
    "nbytes_of",
    "sweep",
    "torch_dtype",
    "write",
    "zoo_folders",
    "zoo_path",
]
