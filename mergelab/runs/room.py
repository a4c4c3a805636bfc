"""Folders of what is made once and kept under ``MERGELAB_HOME``: each has a cap, and what was not used longest goes."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from ..paths import home

#: What is kept -> GB unless ``MERGELAB_<NAME>_GB`` says otherwise.
LIMITS_GB = {"statistics": 16.0, "through": 8.0, "learned": 0.5}


def place_of(kept: str) -> Path:
    """The folder of one sort of kept things; made where it is not there."""
    place = home() / kept
    place.mkdir(parents=True, exist_ok=True)
    return place


def limit_of(kept: str) -> float:
    """Its cap in bytes."""
    try:
        limit = float(os.environ.get(f"MERGELAB_{kept.upper()}_GB") or LIMITS_GB[kept])
    except ValueError:
        limit = LIMITS_GB[kept]
    return 1e9 * (limit if limit >= 0 else LIMITS_GB[kept])  # not a number is not at least 0 either


def used(path: Path) -> Path:
    """Note that a kept thing was used now; gives it back."""
    with suppress(OSError):
        os.utime(path)
    return path


def make_room(kept: str, names: re.Pattern[str], newest: Path) -> list[Path]:
    """Delete kept files or folders, the one not used for longest first, until all together are below the cap.

    Only what ``names`` matches whole counts and goes, so nothing that is being written under another name; never
    ``newest``, however large. A folder is renamed before it is emptied: nobody finds half of one. Gives what is gone.
    """
    found: list[tuple[float, int, Path]] = []
    for path in place_of(kept).iterdir():
        if names.fullmatch(path.name):
            with suppress(OSError):  # another process may make room too
                found.append((path.stat().st_mtime, _size(path), path))
    total, limit, gone = sum(size for _, size, _ in found), limit_of(kept), []
    for _, size, path in sorted(found):
        if total <= limit:
            break
        if path.name != newest.name and _delete(path):
            gone.append(path)
            total -= size
    return gone


def _size(path: Path) -> int:
    return sum(part.stat().st_size for part in path.iterdir()) if path.is_dir() else path.stat().st_size


def _delete(path: Path) -> bool:
    try:
        if not path.is_dir():
            path.unlink()
            return True
        # The name of an unfinished write: what is left of it, if this process dies now, the next write sweeps away.
        aside = path.with_name(f"{path.name}.partial-{os.getpid()}-{secrets.token_hex(4)}")
        path.rename(aside)
    except OSError:
        return False
    shutil.rmtree(aside, ignore_errors=True)
    return True
