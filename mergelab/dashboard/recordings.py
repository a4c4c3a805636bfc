"""What is shipped of training: long runs, looks at their weights, theorem labs. All of them open at once."""

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

    path = _named(_place(), name)
    if path is None:
        raise CheckpointError("There is no such recorded run; choose one of the list.")
    found = read_compare(path)
    if not found["runs"]:
        raise CheckpointError(f"{path.name} holds no run.")
    return found


def look(name: str | None) -> dict[str, Any] | None:
    """The look at the weights that was recorded with a run, ``looks/NAME.json``; None where there is none.
    CheckpointError for a file that is not one."""
    from ..runs.training.look import read_look

    path = _named(_place() / "looks", name)
    return None if path is None else read_look(path)


def theorems() -> dict[str, str]:
    """Name -> title of the recorded theorem labs, ``theorem/*.json``, the highest rate first."""
    found: dict[str, tuple[float, str]] = {}
    for path in sorted((_place() / "theorem").glob("*.json")):
        try:
            rate = float(theorem(path.stem)["rate"])
            found[path.stem] = (-rate, f"η = {rate:g}")
        except (CheckpointError, KeyError, TypeError, ValueError):
            found[path.stem] = (0.0, path.stem)
    return {name: title for name, (_, title) in sorted(found.items(), key=lambda item: item[1])}


def theorem(name: str | None) -> dict[str, Any]:
    """The document of a recorded theorem lab; CheckpointError for a name that is not there or a damaged file."""
    from ..runs.training.theorem import read_theorem

    path = _named(_place() / "theorem", name)
    if path is None:
        raise CheckpointError("There is no such recorded lab; choose one of the list.")
    return read_theorem(path)


def _place() -> Path:
    return assets() / "training"


def _named(place: Path, name: str | None) -> Path | None:
    """A file by its name, which is never taken as a path; CheckpointError for one that is too large."""
    path = next((path for path in place.glob("*.json") if path.stem == name), None)
    if path is not None and not _small(path):
        raise CheckpointError(f"{path.name} is larger than {_MOST_BYTES >> 20} MB, which no recorded file is.")
    return path


def _small(path: Path) -> bool:
    return path.stat().st_size <= _MOST_BYTES
