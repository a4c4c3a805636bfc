"""What a visitor chose to merge, from text fields to a selection of plain values."""

from __future__ import annotations

from typing import Any

from ..errors import MergeLabError
from ..recipe import ModelEntry, Recipe, readable_name


def local_selection(base: str, lines: str, suite: str, public: bool) -> dict[str, Any]:
    """A selection of folders on this machine; ``name = path`` gives an expert a name of its own."""
    if public:
        raise MergeLabError("This is a public page, so folders of its machine cannot be opened.")
    if not base.strip():
        raise MergeLabError("Say where the base is: the folder or file that the experts were fine-tuned from.")
    experts: dict[str, str] = {}
    for line in lines.splitlines():
        if not line.strip():
            continue
        name, mark, path = line.partition(" = ")
        source = (path if mark else line).strip()
        name = name.strip() if mark else readable_name(source)
        if name in experts:
            raise MergeLabError(f"Two experts are called {name!r}; write 'another name = {source}'.")
        experts[name] = source
    if not experts:
        raise MergeLabError("List at least one expert, one a line.")
    return _selection("Models on this machine", base.strip(), experts, suite.strip() or None)


def hub_selection(base: str, wanted: list[dict[str, str]]) -> dict[str, Any]:
    if not wanted:
        raise MergeLabError("Add at least one expert first: search, pick a checkpoint, and press “Add as expert”.")
    if not base.strip():
        raise MergeLabError("Say which base the experts were fine-tuned from, as org/name.")
    names: dict[str, str] = {}
    for item in wanted:
        name = readable_name(item["source"])
        names[name if name not in names else item["repo"].replace("/", "-")] = item["source"]
    return _selection("Models from the Hub", f"hub:{base.strip().removeprefix('hub:')}", names, None)


def _selection(title: str, base: str, experts: dict[str, str], suite: str | None) -> dict[str, Any]:
    Recipe(
        "linear", tuple(map(ModelEntry, experts.values())), base_model=base, suite=suite
    )  # is well-formed, or says why not
    return {"title": title, "zoo": None, "base": base, "experts": experts, "suite": suite, "tuned": {}}
