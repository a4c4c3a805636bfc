"""Writing a folder, or a file, whole or not at all.

Everything goes into a sibling ``<out>.partial-<pid>-<random>``. Then every file and the folder is flushed to disk, the
folder is renamed to its final name, and what lies there is verified. A reader refuses folders with a partial name, so a
write that was killed leaves nothing that loads; the next write beside it sweeps it away.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import CheckpointError

_UNFINISHED = re.compile(r"^(?P<out>.+)\.(?P<kind>partial|old)-(?P<pid>\d+)-[0-9a-f]+$")
#: What this process is writing now.
_LIVE: set[Path] = set()


@contextmanager
def whole_folder(
    folder: str | Path, *, overwrite: bool = False, need: int = 0, verify: Callable[[Path], object] | None = None
) -> Iterator[Path]:
    """A partial folder beside ``folder`` to write into; when the block ends it gets its final name.

    What was there before is kept aside until ``verify`` accepts the new one in its place. After an exception, in the
    block or from ``verify``, nothing of the new one stays. ``need``: bytes that the disk must have free.

    Raises CheckpointError when ``folder`` exists and holds something (unless ``overwrite``), or the disk is full.
    """
    out = Path(folder).expanduser().resolve()
    check_target(out, overwrite)
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}-{secrets.token_hex(4)}")
    _LIVE.add(partial)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        sweep(out.parent)
        _check_space(out.parent, need)
        partial.mkdir()
        yield partial
        _sync_folder(partial)
        check_target(out, overwrite)
        _swap(partial, out, verify)
    except OSError as error:
        raise _disk_error(error, out, need) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        _LIVE.discard(partial)


@contextmanager
def whole_file(
    path: str | Path, *, overwrite: bool = False, need: int = 0, verify: Callable[[Path], object] | None = None
) -> Iterator[Path]:
    """The same for one file: the path of a partial file beside ``path``, for the block to create, write and flush.

    When the block ends, ``verify`` looks at it and it gets its final name in one step.
    """
    out = Path(path).expanduser().resolve()
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}-{secrets.token_hex(4)}")
    _LIVE.add(partial)
    try:
        if _UNFINISHED.match(out.name) or out.is_dir() or (out.exists() and not overwrite):
            raise CheckpointError(f"{out.name} exists or is no name for a file: choose another place to write.")
        out.parent.mkdir(parents=True, exist_ok=True)
        sweep(out.parent)
        _check_space(out.parent, need)
        yield partial
        if verify is not None:
            verify(partial)
        os.replace(partial, out)
        _sync_folder(out.parent)
    except OSError as error:
        raise _disk_error(error, out, need) from error
    finally:
        partial.unlink(missing_ok=True)
        _LIVE.discard(partial)


def check_target(folder: str | Path, overwrite: bool = False) -> None:
    """Raise CheckpointError if ``folder`` cannot be written to; worth asking before long work."""
    out = Path(folder).expanduser().resolve()
    if _UNFINISHED.match(out.name):
        raise CheckpointError(f"{out.name} is a name that MergeLab keeps for unfinished writes: choose another.")
    if not out.exists():
        return
    if not out.is_dir():
        raise CheckpointError(f"{out.name} exists and is not a folder: choose another place to write.")
    if any(out.iterdir()) and not overwrite:
        raise CheckpointError(f"The folder {out.name} exists and is not empty: choose another, or allow overwriting.")


def _swap(partial: Path, out: Path, verify: Callable[[Path], object] | None) -> None:
    old: Path | None = None
    if out.exists():
        old = out.with_name(f"{out.name}.old-{os.getpid()}-{secrets.token_hex(4)}")
        _LIVE.add(old)
        os.replace(out, old)
    try:
        os.replace(partial, out)
        _sync_folder(out.parent)
        if verify is not None:
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


def sweep(folder: str | Path) -> list[Path]:
    """Remove what killed writes left in ``folder`` (partials whose process is gone); returns what was removed.

    An output that was being replaced when its writer died is put back.
    """
    removed: list[Path] = []
    root = Path(folder)
    for path in sorted(root.iterdir()) if root.is_dir() else []:
        found = _UNFINISHED.match(path.name)
        if not found or path.is_symlink() or _alive(path, int(found["pid"])):
            continue
        if not path.is_dir():
            if found["kind"] == "partial":
                path.unlink(missing_ok=True)
                removed.append(path)
            continue
        original = path.with_name(found["out"])
        if found["kind"] == "old" and not original.exists():
            path.rename(original)
            continue
        shutil.rmtree(path, ignore_errors=True)
        removed.append(path)
    return removed


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


def _check_space(parent: Path, need: int) -> None:
    free = shutil.disk_usage(parent).free
    if free < 1.1 * need:
        raise CheckpointError(
            f"The disk is full: writing needs {int(1.1 * need):,} bytes with a margin and {free:,} are free. "
            "Free some space or choose another disk."
        )


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
