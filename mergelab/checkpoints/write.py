"""Writing a checkpoint folder whole or not at all.

Everything goes into a sibling ``<out>.partial-<pid>-<random>``: shards tensor by tensor, config and other files, the
index last. Then every file and the folder is flushed to disk, the folder is renamed to its final name, and what lies
there is read back and checked. A reader refuses folders with a partial name, so a write that was killed leaves nothing
that loads; the next write beside it sweeps it away.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from ..progress import Progress, Stop
from .dtypes import BITS, nbytes_of
from .header import read_header, shown
from .index import check_shards, read_index
from .reader import find_weights
from .shards import Plan, ShardWriter, split, write_file

if TYPE_CHECKING:
    import torch

_UNFINISHED = re.compile(r"^(?P<out>.+)\.(?P<kind>partial|old)-(?P<pid>\d+)-[0-9a-f]+$")
_RESERVED = re.compile(
    r"(^(open_clip_)?config\.json$|\.safetensors$|\.safetensors\.index\.json$|^adapter_config\.json$)"
)
#: What this process is writing now.
_LIVE: set[Path] = set()


def write(
    folder: str | Path,
    tensors: Iterable[tuple[str, torch.Tensor]],
    plan: Plan,
    *,
    config: Mapping[str, Any] | None,
    files: Mapping[str, bytes | str] | None = None,
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
    name. ``metadata`` goes into each header beside ``format: pt``; a pair ``tied name: stored name`` records a tied
    tensor.

    A folder that exists and is not empty is refused unless ``overwrite``; then it is replaced as a whole, and put back
    if that fails. Raises CheckpointError (disk full, a tensor that is not as planned, a NaN or infinity, which names
    the tensor) or Cancelled; whatever is raised, no part of the output stays.
    """
    out = Path(folder).expanduser().resolve()
    files = dict(files or {})
    _check_request(out, plan, files, overwrite)
    need = sum(nbytes_of(*entry) for entry in plan.values()) + sum(len(value) for value in files.values())
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}-{secrets.token_hex(4)}")
    _LIVE.add(partial)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        sweep(out.parent)
        _check_space(out.parent, need)
        partial.mkdir()
        writer = ShardWriter(
            partial, plan, split(plan, max_shard_bytes), {"format": "pt", **(metadata or {})}, allow_nonfinite
        )
        writer.write(tensors, progress, stop)
        _write_small_files(partial, config, files)
        writer.write_index()
        _sync_folder(partial)
        if stop is not None:
            stop.check()
        _move_into_place(partial, out)
    except OSError as error:
        raise _disk_error(error, out, need) from error
    finally:
        # Also on KeyboardInterrupt and GeneratorExit; after a success the name is gone already.
        shutil.rmtree(partial, ignore_errors=True)
        _LIVE.discard(partial)
        close = getattr(tensors, "close", None)
        if close is not None:
            close()
    return out


def sweep(folder: str | Path) -> list[Path]:
    """Remove what killed writes left in ``folder`` (partials whose process is gone); returns what was removed.

    An output that was being replaced when its writer died is put back.
    """
    removed: list[Path] = []
    root = Path(folder)
    for path in sorted(root.iterdir()) if root.is_dir() else []:
        found = _UNFINISHED.match(path.name)
        if not found or path.is_symlink() or not path.is_dir() or _alive(path, int(found["pid"])):
            continue
        original = path.with_name(found["out"])
        if found["kind"] == "old" and not original.exists():
            path.rename(original)
            continue
        shutil.rmtree(path, ignore_errors=True)
        removed.append(path)
    return removed


def verify(folder: Path) -> None:
    """Read back every header of a folder: whole files, and an index that agrees with them. Raises CheckpointError."""
    index, files = find_weights(folder)
    headers = {name: read_header(path) for name, path in files.items()}
    if index is not None:
        check_shards(read_index(index), headers, index.name)


def _check_request(out: Path, plan: Plan, files: Mapping[str, Any], overwrite: bool) -> None:
    if not plan:
        raise CheckpointError("There is no tensor to write.")
    if _UNFINISHED.match(out.name):
        raise CheckpointError(f"{out.name} is a name that MergeLab keeps for unfinished writes: choose another.")
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
    if out.exists():
        if not out.is_dir():
            raise CheckpointError(f"{out.name} exists and is not a folder: choose another place to write.")
        if any(out.iterdir()) and not overwrite:
            raise CheckpointError(
                f"The folder {out.name} exists and is not empty: choose another, or allow overwriting."
            )


def _check_space(parent: Path, need: int) -> None:
    free = shutil.disk_usage(parent).free
    if free < 1.1 * need:
        raise CheckpointError(
            f"The disk is full: writing needs {int(1.1 * need):,} bytes with a margin and {free:,} are free. "
            "Free some space or choose another disk."
        )


def _write_small_files(partial: Path, config: Mapping[str, Any] | None, files: Mapping[str, bytes | str]) -> None:
    if config is not None:
        # OpenCLIP's configuration goes under OpenCLIP's name, as it is read.
        name = "open_clip_config.json" if "model_cfg" in config else "config.json"
        write_file(partial / name, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    for name, content in files.items():
        write_file(partial / name, content)


def _move_into_place(partial: Path, out: Path) -> None:
    """Rename, with what was there before kept aside until the new one is verified."""
    old: Path | None = None
    if out.exists():
        old = out.with_name(f"{out.name}.old-{os.getpid()}-{secrets.token_hex(4)}")
        _LIVE.add(old)
        os.replace(out, old)
    try:
        os.replace(partial, out)
        _sync_folder(out.parent)
        verify(out)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        if old is not None:
            os.replace(old, out)
        raise
    finally:
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
            _LIVE.discard(old)


def _sync_folder(folder: Path) -> None:
    """Flush a folder's entries; systems that cannot open folders (Windows) do without."""
    with suppress(PermissionError, IsADirectoryError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):
                os.fsync(handle)
        finally:
            os.close(handle)


def _disk_error(error: OSError, out: Path, need: int) -> CheckpointError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return CheckpointError(
            f"The disk is full: {out.name} needs {need:,} bytes. Nothing was left behind; free some space or choose "
            "another disk."
        )
    return CheckpointError(f"{out.name} cannot be written: {error.strerror or error}. Nothing was left behind.")


def _alive(path: Path, pid: int) -> bool:
    """Whether the process that writes ``path`` still runs. Numbers are used again (always, in containers): a process
    that started after the folder was made is not its writer."""
    import psutil

    if pid == os.getpid():
        return path in _LIVE
    try:
        return psutil.Process(pid).create_time() <= path.stat().st_mtime + 1
    except psutil.NoSuchProcess:
        return False
    except (psutil.Error, OSError):
        return True
