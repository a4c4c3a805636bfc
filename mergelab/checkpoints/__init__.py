"""Checkpoints: named tensors, read lazily from files, folders, zoos and the Hub, and written whole or not at all."""

from __future__ import annotations

from .checkpoint import Checkpoint, MemoryCheckpoint
from .differences import differing
from .dtypes import FLOATS, dtype_code, nbytes_of, torch_dtype
from .header import TensorInfo
from .sources import load, zoo_folders, zoo_path
from .vectors import Vectors, adapter_vectors
from .whole import sweep, whole_folder
from .write import write

__all__ = [
    "FLOATS",
    "Checkpoint",
    "MemoryCheckpoint",
    "TensorInfo",
    "Vectors",
    "adapter_vectors",
    "differing",
    "dtype_code",
    "load",
    "nbytes_of",
    "sweep",
    "torch_dtype",
    "whole_folder",
    "write",
    "zoo_folders",
    "zoo_path",
]
