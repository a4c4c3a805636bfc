"""Suites: named lists of labelled picture tasks, on disk as packs."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checkpoints.sources import zoo_folders
from ..errors import TaskError, suggest
from ..models.build import read_json
from .pack import Pack

FORMAT = "mergelab-suite/1"
SPLITS = ("train", "val", "test")
#: The share of ``train`` held out as ``val`` where a pack has no validation split.
HELD_OUT = 0.15
MAX_CLASSES = 100_000
_TEXT_CAP = 2000
_SAID = ("source", "licence", "note")


@dataclass(frozen=True)
class Task:
    """Labelled pictures with class names. The pictures are read when a split is first asked for, then kept.

    ``seen`` says whether the zoo has an expert for it. ``path`` is the pack.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    path: Path
    templates: tuple[str, ...] = ("a photo of {}.",)
    seen: bool = True
    source: str = ""
    licence: str = ""
    note: str = ""
    _kept: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False, compare=False, hash=False)

    def split(self, name: str) -> tuple[Tensor, Tensor]:
        """Pictures uint8 [N, H, W, 3] and labels int64 [N] of ``train``, ``val`` or ``test``.

        Grey pictures come as three equal channels. A pack without ``val`` has a share of its ``train`` held out, per
        class and with a fixed seed; ``train`` is then the rest. Do not write into the tensors: they are kept.

        Raises :class:`~mergelab.errors.TaskError` when the split is not there or its arrays do not fit each other.
        """
        if name not in SPLITS:
            raise TaskError(f"{name!r} is not a split.{suggest(name, SPLITS)}")
        if name not in self._kept:
            self._kept[name] = self._load(name)
        return self._kept[name]

    def has(self, split: str) -> bool:
        """Whether a split can be read."""
        return f"x_{split}" in self._pack or (split == "val" and "x_train" in self._pack)

    @cached_property
    def _pack(self) -> Pack:
        return Pack(self.path)

    def _load(self, name: str) -> tuple[Tensor, Tensor]:
        if name == "test" or "x_val" in self._pack:
            return self._stored(name)
        images, labels = self._stored("train")
        held, rest = hold_out(labels, self.name)
        keep = held if name == "val" else rest
        return images[keep], labels[keep]

    def _stored(self, name: str) -> tuple[Tensor, Tensor]:
        pictures = self._pack.pictures(f"x_{name}")
        labels = self._pack.labels(f"y_{name}", len(self.classes))
        if len(pictures) != len(labels):
            raise TaskError(
                f"{self.path.name}: x_{name} has {len(pictures)} pictures and y_{name} has {len(labels)} labels. "
                "They must be as many."
            )
        images = torch.from_numpy(pictures)
        if images.ndim == 3:
            images = images.unsqueeze(-1).expand(-1, -1, -1, 3).contiguous()
        return images, torch.from_numpy(labels)


@dataclass(frozen=True)
class Suite:
    """A named list of tasks. ``zoo`` is the folder of the zoo that it belongs to, whose experts bring heads."""

    name: str
    title: str
    tasks: tuple[Task, ...]
    folder: Path
    zoo: Path | None = None

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, name: str) -> Task:
        """The task of this name; an error that suggests one otherwise."""
        for task in self.tasks:
            if task.name == name:
                return task
        raise TaskError(f"The suite {self.name} has no task {name!r}.{suggest(name, self.names)}")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(task.name for task in self.tasks)

    def pick(self, names: Iterable[str] | None) -> tuple[Task, ...]:
        """The tasks of these names in the suite's order (all for None)."""
        if names is None:
            return self.tasks
        wanted = [self[name].name for name in ([names] if isinstance(names, str) else names)]
        return tuple(task for task in self.tasks if task.name in wanted)


def load_suite(source: str | Path | Suite = "starter") -> Suite:
    """Open a suite without reading its pictures.

    Args:
        source: a zoo's name (``starter``), a zoo's folder, a folder with a suite.json, or a folder of bare ``.npz``
            files that carry a ``classes`` array.

    Raises:
        TaskError: there is no such suite, or its files are damaged; says which and what.
    """
    if isinstance(source, Suite):
        return source
    text = str(source).removeprefix("zoo:")
    zoos = zoo_folders()
    path = Path(source).expanduser()
    if isinstance(source, str) and text in zoos:
        path = zoos[text]
    elif not path.is_dir():
        raise TaskError(
            f"There is no suite {text[:120]!r}.{suggest(text, zoos)} "
            "Name a zoo, a folder with a suite.json, or a folder of .npz tasks."
        )
    path = path.resolve()
    if (path / "zoo.json").is_file():
        listing = read_json(path / "zoo.json") or {}
        return _described(_inside(path, listing.get("suite", "suite"), "zoo.json"), zoo=path)
    if (path / "suite.json").is_file():
        zoo = path.parent if (path.parent / "zoo.json").is_file() else None
        return _described(path, zoo)
    return _bare(path)


def hold_out(labels: Tensor, name: str, share: float = HELD_OUT, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Indices of a validation part and of the rest: ``share`` of every class (rounded, at least one of two or more).

    Fixed by ``name`` and ``seed``; both parts keep the order of the data.
    """
    rng = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)  # RandomState's stream never changes
    held = np.zeros(len(labels), dtype=bool)
    values = labels.numpy()
    for label in np.unique(values):
        places = np.flatnonzero(values == label)
        count = max(1, round(share * len(places))) if len(places) > 1 else 0
        held[rng.permutation(places)[:count]] = True
    return torch.from_numpy(np.flatnonzero(held)), torch.from_numpy(np.flatnonzero(~held))


def subset_indices(task: Task, split: str, n: int, seed: int = 0) -> Tensor:
    """Indices [min(n, N)] of a fixed subset with the classes as equal as they can be; a smaller one is part of it."""
    _, labels = task.split(split)
    return balanced(labels, n, zlib.crc32(f"{task.name}/{split}".encode()) + seed)


def subset(task: Task, split: str, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Pictures and labels of :func:`subset_indices`."""
    images, labels = task.split(split)
    chosen = subset_indices(task, split, n, seed)
    return images[chosen], labels[chosen]


def balanced(labels: Tensor, n: int, seed: int) -> Tensor:
    """Sorted indices of ``n`` items, taken from the classes in turn."""
    if n < 1:
        raise TaskError(f"A subset needs at least one item, not {n}.")
    rng = np.random.RandomState(seed % 2**32)
    values = labels.numpy()
    shuffled = rng.permutation(len(values))
    rank = np.empty(len(values), dtype=np.int64)  # how many of its class come before an item
    turn = rng.permutation(int(values.max()) + 1 if len(values) else 0)  # which classes get the odd ones out
    for label in np.unique(values):
        mine = shuffled[values[shuffled] == label]
        rank[mine] = np.arange(len(mine))
    order = np.lexsort((turn[values], rank))
    return torch.from_numpy(np.sort(order[:n]))


def _described(folder: Path, zoo: Path | None) -> Suite:
    listing = read_json(folder / "suite.json")
    if listing is None:
        raise TaskError(f"{folder} has no suite.json; the suite is not whole.")
    if listing.get("format") != FORMAT:
        raise TaskError(
            f"suite.json: the format is {str(listing.get('format'))[:40]!r}, this version reads {FORMAT!r}."
        )
    entries = listing.get("tasks")
    if not isinstance(entries, list) or not entries or not all(isinstance(e, Mapping) for e in entries):
        raise TaskError("suite.json: tasks must be a list with at least one task.")
    tasks = tuple(_entry(folder, entry) for entry in entries)
    names = [task.name for task in tasks]
    if len(set(names)) != len(names):
        raise TaskError(f"suite.json: two tasks have the same name ({', '.join(sorted(names))[:200]}).")
    name = _text(listing, "name", folder.name)
    return Suite(name, _text(listing, "title", name), tasks, folder, zoo)


def _entry(folder: Path, entry: Mapping[str, Any]) -> Task:
    name = _text(entry, "name", "")
    if not name or name != PurePosixPath(name).name or name.startswith("."):
        raise TaskError(f"suite.json: {name[:60]!r} is not a task's name.")
    seen = entry.get("seen", True)
    if not isinstance(seen, bool):
        raise TaskError(f"suite.json: seen of {name} must be true or false.")
    path = _inside(folder, entry.get("file", f"{name}.npz"), "suite.json")
    if not path.is_file():
        raise TaskError(f"The task {name} has no pack: {path.name} is missing. Build or download the suite again.")
    classes = _texts(entry, "classes", name) if "classes" in entry else Pack(path).texts("classes")
    if not 2 <= len(classes) <= MAX_CLASSES:
        raise TaskError(f"suite.json: {name} has {len(classes)} classes; a task has at least 2.")
    templates = _texts(entry, "templates", name) if entry.get("templates") else ("a photo of {}.",)
    return Task(name, _text(entry, "title", name), classes, path, templates, seen,
                _text(entry, "source", ""), _text(entry, "licence", ""), _text(entry, "note", ""))  # fmt: skip


def _bare(folder: Path) -> Suite:
    """A folder of ``.npz`` tasks that describe themselves; no experts belong to them, so all are unseen."""
    tasks = []
    for path in sorted(folder.glob("*.npz")):
        pack = Pack(path)
        if "classes" not in pack:
            raise TaskError(f"{path.name} has no 'classes' (the class names in label order), so it is not a task.")
        templates = pack.texts("templates") if "templates" in pack else ("a photo of {}.",)
        source, licence, note = (" ".join(pack.texts(k))[:_TEXT_CAP] if k in pack else "" for k in _SAID)
        classes = pack.texts("classes")
        if len(classes) < 2:
            raise TaskError(f"{path.name} names {len(classes)} classes; a task has at least 2.")
        tasks.append(Task(path.stem, path.stem, classes, path, templates, False, source, licence, note))
    if not tasks:
        raise TaskError(f"{folder} holds no suite: there is no suite.json, no zoo.json and no .npz task in it.")
    return Suite(folder.name, folder.name, tuple(tasks), folder)


def _inside(folder: Path, name: Any, where: str) -> Path:
    """A path below ``folder`` that a listing names; nothing may lead outside."""
    parts = PurePosixPath(name).parts if isinstance(name, str) else ()
    if not parts or PurePosixPath(str(name)).is_absolute() or ".." in parts or "\\" in name or "\0" in name:
        raise TaskError(f"{where} names {str(name)[:80]!r}, which is not a place inside its folder; do not trust it.")
    return folder.joinpath(*parts)


def _text(entry: Mapping[str, Any], key: str, default: str) -> str:
    value = entry.get(key, default)
    if not isinstance(value, str) or len(value) > _TEXT_CAP:
        raise TaskError(f"suite.json: {key} must be text of at most {_TEXT_CAP} characters.")
    return value


def _texts(entry: Mapping[str, Any], key: str, task: str) -> tuple[str, ...]:
    value = entry.get(key)
    if not isinstance(value, list) or not all(isinstance(v, str) and len(v) <= _TEXT_CAP for v in value):
        raise TaskError(f"suite.json: {key} of {task} must be a list of texts.")
    return tuple(value)
