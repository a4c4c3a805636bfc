"""Writing a folder of any content whole or not at all, as :mod:`mergelab.checkpoints.write` does for a checkpoint."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import CheckpointError
from .write import _LIVE, _UNFINISHED, _check_space, _disk_error, _sync_folder, sweep


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
