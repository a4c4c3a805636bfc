"""Writing a checkpoint folder whole or not at all.

Everything goes into a sibling ``<out>.partial-<pid>-<random>``: shards tensor by tensor (their headers are known from
the plan, so one tensor is in memory), config and other files, the index last. Then every file and the folder is flushed
to disk, the folder is renamed to its final name, and what lies there is read back and checked. A reader refuses folders
with a partial name, so a write that was killed leaves nothing that loads; the next write beside it sweeps it away.
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
from ..progress import Progress, Stop, report
from .checkpoint import raw_bytes
from .dtypes import BITS, dtype_code, nbytes_of
from .header import read_header, shown

if TYPE_CHECKING:
    import torch

#: name -> (dtype code, shape)
Plan = "Mapping[str, tuple[str, tuple[int, ...]]]"
_PARTIAL = re.compile(r"^(?P<out>.+)\.(partial|old)-(?P<pid>\d+)-[0-9a-f]+$")
#: Partials that this process is writing now.
_LIVE: set[Path] = set()
_RESERVED = re.compile(r"(^config\.json$|\.safetensors$|\.safetensors\.index\.json$|^adapter_config\.json$)")


def write(
    folder: str | Path,
    tensors: Iterable[tuple[str, torch.Tensor]],
    plan: Mapping[str, tuple[str, tuple[int, ...]]],
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

    ``plan`` says each tensor's dtype code and shape beforehand and in which order they are laid out; ``tensors`` may come
    in any order and must be exactly the planned ones. One shard is ``model.safetensors``; more are
    ``model-00001-of-0000N.safetensors`` with ``model.safetensors.index.json``. ``files`` are further files by bare name.
    ``metadata`` goes into each header beside ``format: pt``; a pair ``tied name: stored name`` records a tied tensor.

    A folder that exists and is not empty is refused unless ``overwrite``; then it is replaced as a whole, and put back
    if that fails. Raises CheckpointError (disk full, a tensor that is not as planned, a NaN or infinity, which names
    the tensor) or Cancelled; whatever is raised, no part of the output stays.
    """
    out = Path(folder).expanduser().resolve()
    files = dict(files or {})
    _check_request(out, plan, files, overwrite)
    shards = split(plan, max_shard_bytes)
    need = sum(nbytes_of(*entry) for entry in plan.values()) + sum(len(value) for value in files.values())
    out.parent.mkdir(parents=True, exist_ok=True)
    sweep(out.parent)
    _check_space(out.parent, need)
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}-{secrets.token_hex(4)}")
    _LIVE.add(partial)
    try:
        partial.mkdir()
        headers = _headers(shards, plan, {"format": "pt", **(metadata or {})})
        _write_tensors(partial, tensors, plan, shards, headers, allow_nonfinite, progress, stop)
        _write_small_files(partial, config, files, shards, plan)
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


def split(plan: Mapping[str, tuple[str, tuple[int, ...]]], max_shard_bytes: float) -> dict[str, list[str]]:
    """File name -> names of its tensors, filled in the plan's order, none above ``max_shard_bytes`` but single tensors."""
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


def sweep(folder: str | Path) -> list[Path]:
    """Remove what killed writes left in ``folder`` (partials whose process is gone); returns what was removed.

    An output that was being replaced when its writer died is put back.
    """
    removed: list[Path] = []
    root = Path(folder)
    for path in sorted(root.iterdir()) if root.is_dir() else []:
        found = _PARTIAL.match(path.name)
        if not found or path.is_symlink() or not path.is_dir() or _alive(path, int(found["pid"])):
            continue
        original = path.with_name(found["out"])
        if ".old-" in path.name[len(found["out"]) :] and not original.exists():
            path.rename(original)
            continue
        shutil.rmtree(path, ignore_errors=True)
        removed.append(path)
    return removed


def _check_request(out: Path, plan: Mapping[str, Any], files: Mapping[str, Any], overwrite: bool) -> None:
    if not plan:
        raise CheckpointError("There is no tensor to write.")
    if _PARTIAL.match(out.name):
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
                f"The folder {out.name} exists and is not empty: choose another, or allow overwriting it."
            )


def _check_space(parent: Path, need: int) -> None:
    free = shutil.disk_usage(parent).free
    if free < 1.1 * need:
        raise CheckpointError(
            f"The disk is full: writing needs {int(1.1 * need):,} bytes with a margin and {free:,} are free. "
            "Free some space or choose another disk."
        )


def _headers(
    shards: Mapping[str, list[str]], plan: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> dict[str, tuple[bytes, dict[str, int]]]:
    """Per file: its first bytes (length and header, padded to 8) and where in the file each tensor begins."""
    out = {}
    for file, names in shards.items():
        entries: dict[str, Any] = {"__metadata__": dict(metadata)}
        position = 0
        for name in names:
            code, shape = plan[name]
            end = position + nbytes_of(code, tuple(shape))
            entries[name] = {"dtype": code, "shape": list(shape), "data_offsets": [position, end]}
            position = end
        text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        start = 8 + len(text)
        raw = len(text).to_bytes(8, "little") + text
        out[file] = (raw, {name: start + entries[name]["data_offsets"][0] for name in names})
    return out


def _write_tensors(
    partial: Path,
    tensors: Iterable[tuple[str, torch.Tensor]],
    plan: Mapping[str, tuple[str, tuple[int, ...]]],
    shards: Mapping[str, list[str]],
    headers: Mapping[str, tuple[bytes, dict[str, int]]],
    allow_nonfinite: bool,
    progress: Progress | None,
    stop: Stop | None,
) -> None:
    file_of = {name: file for file, names in shards.items() for name in names}
    left = {file: len(names) for file, names in shards.items()}
    written: set[str] = set()
    handles: dict[str, int] = {}
    try:
        for name, tensor in tensors:
            if stop is not None:
                stop.check()
            _check_tensor(name, tensor, plan, written, allow_nonfinite)
            file = file_of[name]
            if file not in handles:
                handles[file] = os.open(
                    partial / file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o644
                )
                _write_at(handles[file], memoryview(headers[file][0]), 0)
            _write_at(handles[file], raw_bytes(tensor.cpu()), headers[file][1][name])
            written.add(name)
            left[file] -= 1
            if not left[file]:
                handle = handles.pop(file)
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)
            report(progress, len(written), len(plan), f"writing {name}")
    finally:
        for handle in handles.values():
            os.close(handle)
    missing = [name for name in plan if name not in written]
    if missing:
        raise CheckpointError(
            f"{len(missing)} planned tensors were never made, such as {shown(missing[0])}. Nothing was written."
        )


def _check_tensor(
    name: str, tensor: torch.Tensor, plan: Mapping[str, Any], written: set[str], allow_nonfinite: bool
) -> None:
    if name not in plan or name in written:
        why = "comes twice" if name in written else "is not in the plan"
        raise CheckpointError(f"Tensor {shown(name)} {why}. Nothing was written.")
    code, shape = plan[name]
    if dtype_code(tensor.dtype) != code or tuple(tensor.shape) != tuple(shape):
        raise CheckpointError(
            f"Tensor {shown(name)} is {dtype_code(tensor.dtype)} {list(tensor.shape)}, planned was {code} {list(shape)}. "
            "Nothing was written."
        )
    if not allow_nonfinite and (tensor.is_floating_point() or tensor.is_complex()):
        bad = (
            tensor.numel() - int(tensor.float().isfinite().sum()) if tensor.element_size() == 1 else _nonfinite(tensor)
        )
        if bad:
            raise CheckpointError(
                f"Tensor {shown(name)} has {bad:,} values that are NaN or infinite as {code}; nothing was written. "
                "Check the models, or write in float32."
            )


def _nonfinite(tensor: torch.Tensor) -> int:
    return tensor.numel() - int(tensor.isfinite().sum())


def _write_at(handle: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        if hasattr(os, "pwrite"):
            done += os.pwrite(handle, data[done : done + (1 << 30)], offset + done)
        else:
            os.lseek(handle, offset + done, os.SEEK_SET)
            done += os.write(handle, data[done : done + (1 << 30)])


def _write_small_files(
    partial: Path,
    config: Mapping[str, Any] | None,
    files: Mapping[str, bytes | str],
    shards: Mapping[str, list[str]],
    plan: Mapping[str, tuple[str, tuple[int, ...]]],
) -> None:
    """Config and further files, and the index last: without it a set of shards does not load."""
    if config is not None:
        # OpenCLIP's configuration goes under OpenCLIP's name, as it is read.
        name = "open_clip_config.json" if "model_cfg" in config else "config.json"
        _write_file(partial / name, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    for name, content in files.items():
        _write_file(partial / name, content)
    if len(shards) > 1:
        total = sum(nbytes_of(*entry) for entry in plan.values())
        weight_map = {name: file for file, names in shards.items() for name in names}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        _write_file(partial / "model.safetensors.index.json", json.dumps(index, indent=2, ensure_ascii=False) + "\n")


def _write_file(path: Path, content: bytes | str) -> None:
    with path.open("xb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


def _move_into_place(partial: Path, out: Path) -> None:
    """Rename, with what was there before kept aside until the new one is verified."""
    old: Path | None = None
    if out.exists():
        old = out.with_name(f"{out.name}.old-{os.getpid()}-{secrets.token_hex(4)}")
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
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def verify(folder: Path) -> None:
    """Read back every header of a written folder: whole files, and an index that agrees with them."""
    from .index import check_shards, read_index
    from .reader import find_weights

    index, files = find_weights(folder)
    headers = {name: read_header(path) for name, path in files.items()}
    if index is not None:
        check_shards(read_index(index), headers, index.name)


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
            f"The disk is full: {out.name} needs {need:,} bytes. Nothing was left behind; free some space or choose another disk."
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
