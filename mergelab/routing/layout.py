"""What a routed model's folder looks like: names of files, and what routed.json may say."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ..checkpoints.header import load_json_object, shown
from ..checkpoints.index import is_bare_name, read_small
from ..errors import RoutingError

FORMAT = "mergelab-routed/1"
MANIFEST, SHARED, EXCLUSIVE, HEADS = "routed.json", "shared", "exclusive", "heads"
ROUTER, EARLY = "router", "early_router"
#: A routed.json holds a router's curves and a recipe; more is none.
MAX_MANIFEST = 16 << 20
MOST_TASKS = 4096
_KEYS = ("format", "version", "names", "shared", "exclusive", "heads", "routers", "early_layer", "gate", "settings",
         "hashes")  # fmt: skip
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")
_SHA = re.compile(r"[0-9a-f]{64}")


def file_names(tasks: Sequence[str]) -> dict[str, str]:
    """Task -> bare file name: its own name where any system can hold it and no other task's is the same but for case,
    else its number."""
    folded = [task.casefold() for task in tasks]
    out = {}
    for i, task in enumerate(tasks):
        plain = _PLAIN.fullmatch(task) and not _DEVICES.fullmatch(task) and folded.count(folded[i]) == 1
        out[task] = f"{task}.safetensors" if plain else f"@{i:04d}.safetensors"
    return out


def read_manifest(folder: Path) -> dict[str, Any]:
    """The checked content of ``routed.json``. Raises RoutingError naming the key that is wrong."""
    path = folder / MANIFEST
    if path.is_symlink() or not path.is_file():
        raise RoutingError(
            f"{folder.name} is no routed model: it has no {MANIFEST}. Build one with `mergelab twin build`, or name "
            "its folder."
        )
    data = load_json_object(read_small(path, MAX_MANIFEST), MANIFEST)
    if data.get("format") != FORMAT:
        raise RoutingError(f"{MANIFEST}: the format is {shown(data.get('format'))}, this version reads {FORMAT!r}.")
    for key in data:
        _require(key in _KEYS, f"the key {shown(key)} is not known")
    for key in _KEYS:
        _require(key in data, f"the key {key!r} is missing")
    names = data["names"]
    _require(
        isinstance(names, list) and 1 <= len(names) <= MOST_TASKS
        and all(isinstance(n, str) and n and n.isprintable() and len(n) <= 400 for n in names)
        and len(set(names)) == len(names),
        f"'names' must be 1 to {MOST_TASKS} different task names",
    )  # fmt: skip
    _require(isinstance(data["shared"], str) and bool(_SHA.fullmatch(data["shared"])), "'shared' must be a sha256")
    for key in ("exclusive", "heads", "routers", "gate", "settings", "hashes"):
        _require(isinstance(data[key], dict), f"{key!r} must be an object")
    _require(set(data["exclusive"]) == set(names), "'exclusive' must have one entry a task")
    _require(set(data["heads"]) <= set(names), "'heads' has an entry that is of no task")
    _require(set(data["routers"]) <= {ROUTER, EARLY}, "'routers' has an unknown entry")
    layer = data["early_layer"]
    _require(layer is None or (type(layer) is int and 0 <= layer < 2**31), "'early_layer' must be a whole number")
    for file, digest in data["hashes"].items():
        _require(isinstance(digest, str) and bool(_SHA.fullmatch(digest)), f"the hash of {shown(file)} is no sha256")
    for place, files in ((EXCLUSIVE, data["exclusive"].values()), (HEADS, map(_head, data["heads"].values()))):
        for file in files:
            _require(_inside(file, place) or (file is None and place == EXCLUSIVE),
                     f"{shown(file)} is not a file in {place}/")  # fmt: skip
    return data


def place_of(folder: Path, file: str) -> Path:
    """The regular file that ``file`` names in ``folder``; links are not followed."""
    path = folder
    for step in PurePosixPath(file).parts:
        path = path / step
        if path.is_symlink():
            raise RoutingError(f"{file} of {folder.name} is a link; copy what it points to, if you trust it.")
    if not path.is_file():
        raise RoutingError(f"{folder.name} is not whole: {file} is missing. Build or copy it again.")
    return path


def _head(entry: Any) -> Any:
    known: Mapping[str, Any] = entry if isinstance(entry, dict) else {}
    _require(
        set(known) == {"file", "scale", "normalize", "kind"}, "a head must say its file, scale, normalize and kind"
    )
    scale = known["scale"]
    _require(isinstance(scale, (int, float)) and not isinstance(scale, bool) and abs(scale) < 1e6, "a head's scale")
    _require(isinstance(known["normalize"], bool), "a head's 'normalize' must be true or false")
    _require(isinstance(known["kind"], str) and len(known["kind"]) <= 100, "a head's 'kind' must be a word")
    return known["file"]


def _inside(file: Any, place: str) -> bool:
    if not isinstance(file, str) or not file.startswith(f"{place}/"):
        return False
    return is_bare_name(file[len(place) + 1 :])


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise RoutingError(f"{MANIFEST} is malformed: {problem}. Build the routed model again.")
