"""Writing a checkpoint folder whole or not at all (see :mod:`mergelab.checkpoints.whole`): shards tensor by tensor,
config and other files, the index last; then what lies under the final name is read back and checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from ..progress import Progress, Stop
from .adapters import CONFIG as ADAPTER_CONFIG
from .adapters import WEIGHTS as ADAPTER_WEIGHTS
from .dtypes import BITS, nbytes_of
from .header import read_header, shown
from .index import check_shards, read_index
from .reader import find_weights
from .shards import Plan, ShardWriter, split, write_file
from .whole import whole_folder

if TYPE_CHECKING:
    import torch

_RESERVED = re.compile(
    r"(^(open_clip_)?config\.json$|\.safetensors$|\.safetensors\.index\.json$|^adapter_config\.json$)"
)


def write(
    folder: str | Path,
    tensors: Iterable[tuple[str, torch.Tensor]],
    plan: Plan,
    *,
    config: Mapping[str, Any] | None,
    adapter: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes | str] | None = None,
    late: Callable[[], Mapping[str, bytes | str]] | None = None,
    metadata: Mapping[str, str] | None = None,
    max_shard_bytes: float = 5e9,
    overwrite: bool = False,
    allow_nonfinite: bool = False,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Path:
    """Write tensors as a Hugging Face folder at ``folder`` and return it, atomically.

    ``plan`` says each tensor's dtype code and shape beforehand, in the order in which they are laid out; ``tensors``
    may come in any order and must be exactly the planned ones. One shard is ``model.safetensors``; more are
    ``model-00001-of-0000N.safetensors`` with ``model.safetensors.index.json``. ``files`` are further files by bare
    name; ``late`` gives more of them once all tensors are written. ``metadata`` goes into each header beside
    ``format: pt``; a pair ``tied name: stored name`` records a tied tensor. With ``adapter``, the settings of a PEFT
    adapter, the tensors are the adapter's own, and an adapter folder is written.

    A folder that exists and is not empty is refused unless ``overwrite``; then it is replaced as a whole, and put back
    if that fails. Raises CheckpointError (disk full, a tensor that is not as planned, a NaN or infinity, which names
    the tensor) or Cancelled; whatever is raised, no part of the output stays.
    """
    files = dict(files or {})
    _check_request(plan, files)
    need = sum(nbytes_of(*entry) for entry in plan.values()) + sum(len(value) for value in files.values())
    try:
        check = verify if adapter is None else _verify_adapter
        with whole_folder(folder, overwrite=overwrite, need=need, verify=check) as partial:
            shards = split(plan, max_shard_bytes) if adapter is None else {ADAPTER_WEIGHTS: list(plan)}
            writer = ShardWriter(partial, plan, shards, {"format": "pt", **(metadata or {})}, allow_nonfinite)
            writer.write(tensors, progress, stop)
            if late is not None:
                files |= late()
                _check_request(plan, files)
            _write_small_files(partial, config, files)
            if adapter is not None:
                write_file(partial / ADAPTER_CONFIG, json.dumps(adapter, indent=2, ensure_ascii=False) + "\n")
            writer.write_index()
            if stop is not None:
                stop.check()
    finally:
        close = getattr(tensors, "close", None)
        if close is not None:
            close()
    return Path(folder).expanduser().resolve()


def verify(folder: Path) -> None:
    """Read back every header of a folder: whole files, and an index that agrees with them. Raises CheckpointError."""
    index, files = find_weights(folder)
    headers = {name: read_header(path) for name, path in files.items()}
    if index is not None:
        check_shards(read_index(index), headers, index.name)


def _verify_adapter(folder: Path) -> None:
    read_header(folder / ADAPTER_WEIGHTS)


def _check_request(plan: Plan, files: Mapping[str, Any]) -> None:
    if not plan:
        raise CheckpointError("There is no tensor to write.")
    for name, (code, shape) in plan.items():
        if not name or not name.isprintable() or name == "__metadata__":
            raise CheckpointError(f"A tensor cannot be stored under the name {shown(name)}.")
        if code not in BITS:
            raise CheckpointError(f"Tensor {shown(name)} cannot be stored as {shown(code)}: unknown dtype.")
        if any(type(size) is not int or size < 0 for size in shape):
            raise CheckpointError(f"Tensor {shown(name)} cannot have the shape {shown(shape)}.")
    for name in files:
        if not name or Path(name).name != name or "\\" in name or not name.isprintable() or name in (".", ".."):
            raise CheckpointError(f"{shown(name)} is not the plain name of a file to write.")
        if _RESERVED.search(name):
            raise CheckpointError(f"{name} is written by MergeLab itself and cannot be given as a further file.")


def _write_small_files(partial: Path, config: Mapping[str, Any] | None, files: Mapping[str, bytes | str]) -> None:
    if config is not None:
        # OpenCLIP's configuration goes under OpenCLIP's name, as it is read.
        name = "open_clip_config.json" if "model_cfg" in config else "config.json"
        write_file(partial / name, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    for name, content in files.items():
        write_file(partial / name, content)
