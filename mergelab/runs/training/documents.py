"""The files that training leaves as plain data: runs, comparisons, looks, theorems. Read with a cap and a format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...checkpoints.whole import whole_file
from ...errors import CheckpointError

_MOST_BYTES = 64 << 20


def write(document: Mapping[str, Any], path: str | Path, *, overwrite: bool = False) -> Path:
    """Into one file, whole or not at all."""
    with whole_file(path, overwrite=overwrite) as unfinished:
        unfinished.write_text(json.dumps(document, ensure_ascii=False) + "\n", encoding="utf-8")
    return Path(path)


def read(path: str | Path, wanted: str, again: str) -> dict[str, Any]:
    """The document of the format ``wanted`` in a file; CheckpointError for any other, ``again`` saying what to do."""
    path = Path(path).expanduser()
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise CheckpointError(f"{path.name} is larger than {_MOST_BYTES >> 20} MB, which none of its kind is.")
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path.parent.name}/{path.name} cannot be read: {error.strerror or error}.") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path.name} is not valid JSON; {again}.") from None
    checked(data, wanted, path.name, again)
    return dict(data)


def checked(data: Any, wanted: str, where: str, again: str) -> None:
    """CheckpointError unless ``data`` is a document of the format ``wanted``."""
    found = data.get("format") if isinstance(data, Mapping) else type(data).__name__
    if found != wanted:
        raise CheckpointError(f"{where}: the format is {str(found)[:40]!r}, this version reads {wanted!r}; {again}.")
