"""Training runs that are shipped: long ones, which open at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..paths import assets

_MOST_BYTES = 16 << 20


def recordings() -> dict[str, str]:
    """Name -> title, from ``assets/training/*.json``; one that cannot be read is called by its name, and says what is
    wrong when it is opened."""
    found = {}
    for path in sorted(_place().glob("*.json")):
        try:
            title = json.loads(path.read_text(encoding="utf-8")).get("title") if _small(path) else None
        except (OSError, ValueError, AttributeError, RecursionError):
            title = None
        found[path.stem] = str(title or path.stem)
    return found


def recording(name: str | None) -> dict[str, Any]:
    """The document of a recorded run; CheckpointError for a name that is not there or a file that is damaged."""
    from ..runs.training.compare import read_compare

    path = next((path for path in _place().glob("*.json") if path.stem == name), None)
    if path is None:
        raise CheckpointError("There is no such recorded run; choose one of the list.")
    if not _small(path):
        raise CheckpointError(f"{path.name} is larger than {_MOST_BYTES >> 20} MB, which no recorded run is.")
    found = read_compare(path)
    if not found["runs"]:
        raise CheckpointError(f"{path.name} holds no run.")
    return found


def _place() -> Path:
    return assets() / "training"


def _small(path: Path) -> bool:
    return path.stat().st_size <= _MOST_BYTES
