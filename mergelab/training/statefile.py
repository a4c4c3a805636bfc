"""States on disk: one safetensors file each, whole or not there, with what belongs to it in its header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..checkpoints.whole import whole_file
from ..errors import CheckpointError

_META = "mergelab"


def save(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write ``tensors`` and ``about`` (plain data); the file has its name only once it is whole."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    with whole_file(path, overwrite=True, need=size) as partial:
        save_file(dict(tensors), str(partial), metadata={"format": "pt", _META: json.dumps(dict(about))})


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that :func:`save` wrote; CheckpointError for one that is damaged or not there."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"The training state {path.name} cannot be read ({error}); delete it and resume."
        ) from None


def about(path: Path) -> dict[str, Any] | None:
    """What :func:`save` was told beside the tensors; None where there is no whole file of its kind."""
    try:
        with safe_open(str(path), framework="pt") as file:
            found = json.loads((file.metadata() or {}).get(_META, "null"))
    except (OSError, SafetensorError, ValueError):
        return None
    return found if isinstance(found, dict) else None
