"""What a zoo is on disk, and opening one. Reads small JSON files only: no weights, no pictures, no torch.

::

    zoo.json          name, title, base, experts {task: folder}, suite, tune, seed, tuned (chosen on validation)
    README.md         the card
    measured.json     what the builder measured
    predictions.npz   predicted labels of the test split: base/<task>, expert/<task>
    base/             config.json, preprocessor_config.json, safetensors
    experts/<task>/   adapter or full checkpoint, head.safetensors
    suite/            suite.json, <task>.npz
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import MergeLabError, suggest
from ..paths import assets, home

FORMAT = "mergelab-zoo/1"
#: No JSON file of a zoo is larger than this.
MAX_JSON = 16 << 20


class ZooError(MergeLabError):
    """A zoo cannot be opened or built: what is missing, and where it comes from."""


@dataclass(frozen=True)
class Zoo:
    """A base, its experts and their suite. ``base`` and the values of ``experts`` are sources for ``mergelab.load``."""

    name: str
    title: str
    folder: Path
    base: str
    experts: Mapping[str, str]  # task -> source, in suite order
    suite: Path
    tune: str = "lora"
    seed: int = 0
    tuned: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # method -> parameters chosen on validation

    @property
    def measured(self) -> dict[str, Any]:
        """What the builder measured (``measured.json``); empty where it measured nothing.

        Its recipes call the models ``zoo:NAME/...``; in a zoo that lies elsewhere they are given as this zoo's folders.
        """
        path = self.folder / "measured.json"
        found = read_json(path) if path.is_file() else {}
        if self.base.startswith("zoo:"):
            return found
        places = {f"zoo:{self.name}/{part}": source for part, source in {**self.experts, "base": self.base}.items()}
        for merge in found.get("evaluations", {}).get("merges", []):
            recipe = merge["recipe"]
            recipe["base_model"] = places.get(recipe.get("base_model"), recipe.get("base_model"))
            recipe["models"] = [{**m, "model": places.get(m["model"], m["model"])} for m in recipe["models"]]
            recipe["suite"] = str(self.folder)
        return found


def open_zoo(source: str | Path = "starter") -> Zoo:
    """Open a zoo by name (``starter``, ``zoo:starter``) or folder, without loading weights.

    Raises :class:`ZooError` when there is no such zoo or it is not whole.
    """
    text = str(source).removeprefix("zoo:")
    known = zoo_folders()
    folder = known[text] if isinstance(source, str) and text in known else Path(source).expanduser()
    if not (folder / "zoo.json").is_file():
        raise ZooError(
            f"There is no zoo {text[:120]!r}.{suggest(text, known)} Give a zoo's name, or a folder with a zoo.json."
        )
    folder = folder.resolve()
    listing = read_json(folder / "zoo.json")
    if listing.get("format") != FORMAT:
        raise ZooError(
            f"zoo.json of {folder.name}: the format is {str(listing.get('format'))[:40]!r}, "
            f"this version reads {FORMAT!r}."
        )
    experts = listing.get("experts")
    if not isinstance(experts, dict) or not experts:
        raise ZooError(f"zoo.json of {folder.name} lists no experts. Build the zoo again.")
    shipped = known.get(folder.name)
    named = shipped is not None and shipped.resolve() == folder

    def place(part: str, where: Any) -> str:
        inside = _inside(folder, where)
        return f"zoo:{folder.name}/{part}" if named else str(inside)

    name = str(listing.get("name", folder.name))
    return Zoo(
        name=name,
        title=str(listing.get("title", name)),
        folder=folder,
        base=place("base", listing.get("base", "base")),
        experts={task: place(task, where) for task, where in experts.items()},
        suite=_inside(folder, listing.get("suite", "suite")),
        tune=str(listing.get("tune", "lora")),
        seed=int(listing.get("seed", 0)),
        tuned=dict(listing.get("tuned", {})),
    )


def list_zoos() -> list[Zoo]:
    """Every zoo on this machine that opens: those shipped, then those built."""
    return [open_zoo(folder) for _, folder in sorted(zoo_folders().items())]


def zoo_folders() -> dict[str, Path]:
    """Name -> folder of every zoo on this machine; a shipped one wins over a built one of the same name."""
    found: dict[str, Path] = {}
    for root in (home() / "zoo", assets() / "zoo"):
        if root.is_dir():
            found.update({path.name: path for path in sorted(root.iterdir()) if (path / "zoo.json").is_file()})
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a zoo's file, checked to be one and not absurdly large."""
    if path.stat().st_size > MAX_JSON:
        raise ZooError(f"{path.name} of {path.parent.name} is larger than {MAX_JSON >> 20} MB, which no zoo needs.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ZooError(
            f"{path.name} of {path.parent.name} is not valid JSON. Build or download the zoo again."
        ) from None
    if not isinstance(found, dict):
        raise ZooError(f"{path.name} of {path.parent.name} must hold a JSON object.")
    return found


def _inside(folder: Path, where: Any) -> Path:
    path = (folder / str(where)).resolve()
    if not isinstance(where, str) or not path.is_relative_to(folder):
        raise ZooError(
            f"zoo.json of {folder.name} names {str(where)[:80]!r}, which is not inside the zoo; do not trust it."
        )
    return path
