"""Pickled checkpoints, for people who ask for them in Python; never reachable from the page or the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..errors import CheckpointError
from .checkpoint import MemoryCheckpoint
from .reader import read_config

_NAMES = ("pytorch_model.bin", "open_clip_pytorch_model.bin", "model.pt")


def find_pickle(folder: Path) -> Path | None:
    """The pickle of a folder that has no safetensors; ``None`` where there are some or no known name."""
    if any(folder.glob("*.safetensors")):
        return None
    found = [folder / name for name in _NAMES if (folder / name).is_file()]
    return found[0] if found else None


def open_pickle(path: Path, *, name: str, source: str) -> MemoryCheckpoint:
    """Read a state dict with ``torch.load(weights_only=True, mmap=True)``, which admits tensors and plain containers.

    Raises CheckpointError if it holds anything else. A dict with the single known wrapper ``state_dict`` is unwrapped.
    """
    import torch

    try:
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:
        try:  # files of before torch 1.6 are not zips and cannot be mapped
            value = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise CheckpointError(
                f"{path.name} is not a pickle of plain tensors: {str(error).splitlines()[0][:160]}"
            ) from error
    if isinstance(value, Mapping) and isinstance(value.get("state_dict"), Mapping):
        value = value["state_dict"]
    if not isinstance(value, Mapping):
        raise CheckpointError(f"{path.name} holds a {type(value).__name__}, not named tensors.")
    out = MemoryCheckpoint(value, name=name, config=read_config(path.parent, path.name, strict=False))
    out.source, out.folder = source, path.parent
    return out
