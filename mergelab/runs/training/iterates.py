"""The models that training runs left in their folders, read tensor by tensor when they are looked at."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from ...analysis.products import State
from ...checkpoints import load
from ...errors import CheckpointError
from ...training.ground import Ground
from ...training.work import tensors_of
from .kept import STATE_FILE, Kept
from .record import RECORD_FILE, Record

#: The folder of the experts that are tuned from the joint model, beside the runs of a comparison.
CONTROL = "control"
#: Names of the runs of a comparison in the order in which they are shown, and what they are called there.
TITLES = {"atm": "ATM", "joint": "joint", "pcgrad": "PCGrad", "one_shot": "experts", "experts": "experts",
          CONTROL: "experts from the joint model"}  # fmt: skip
#: Tensors of trained heads have names of this kind among a model's: ``heads/mnist/weight``.
HEADS = "heads/"
_AGAIN = "run it again with --keep-rounds (keep_rounds=True) to look at its rounds."


class Runs:
    """Runs that started from the same model: those of a comparison's folder (``DIR/atm``, ``DIR/joint`` …), or the one
    whose own folder this is.

    ``records`` by name; ``control`` is the record of ``DIR/control`` where that started from this joint model. A model
    is a mapping over the tensors that training may change: what a run has not trained is the base's. With ``heads``
    those that were trained along are tensors of it too.

    Raises CheckpointError for a folder without runs, or with runs that started from different models.
    """

    def __init__(self, folder: str | Path, device: str = "auto") -> None:
        self.folder, self.device = Path(folder).expanduser().resolve(), device
        places = _places(self.folder)
        found = {name: Record.read(place) for name, place in places.items()}
        if self.folder in places.values():
            (record,) = found.values()
            name = "pcgrad" if record.recipe.combine == "pcgrad" else record.kind
            found, places = {name: record}, {name: self.folder}
        control = found.pop(CONTROL, None)
        self.control = control if control and from_joint(control, found.get("joint")) else None
        if not found:
            raise CheckpointError(f"There is no training run in {self.folder.name} but the control.")
        self.records = found
        self._kept = {name: Kept(places[name], record.recipe) for name, record in found.items()}
        self._check_same()

    def _check_same(self) -> None:
        """One origin and the same items for all, or the plane and the distances would mean nothing."""
        (first, one), *others = self.records.items()
        for name, record in others:
            for what, value in _origin(record).items():
                if value != _origin(one)[what]:
                    raise CheckpointError(
                        f"The runs {first} and {name} in {self.folder.name} do not have the same {what}, so they "
                        "cannot be looked at together; name the folder of one of them."
                    )

    @cached_property
    def ground(self) -> Ground:
        """The model and the data that the runs share."""
        return Ground(next(iter(self.records.values())).recipe, self.device)

    @property
    def wholes(self) -> tuple[str, ...]:
        """Names of the runs that make one model: all but those of experts."""
        return tuple(name for name, record in self.records.items() if record.kind != "experts")

    @property
    def apart(self) -> str | None:
        """The name of the run that trained experts apart, where there is one."""
        return next((name for name, record in self.records.items() if record.kind == "experts"), None)

    def rounds(self, name: str) -> int:
        """Rounds of a run that have ended; CheckpointError where there is none."""
        count = len(self.records[name].rounds)
        if not count:
            raise CheckpointError(f"The run {name} in {self.folder.name} has no finished round yet; go on with it.")
        return count

    # ---- models ------------------------------------------------------------------------------------------------------

    @cached_property
    def _base(self) -> dict[str, Tensor]:
        own = self.ground.model.weights.tensors
        return {name: own[name].detach().cpu() for name in self.ground.trained()}

    def start(self, heads: bool = False) -> State:
        """What all runs started from."""
        name, kept = next(iter(self._kept.items()))
        over = self._heads(name, 0) if heads else {}
        if kept.start_file is None:
            return {**self._base, **over}
        return Filled(self._file(kept.start_file, name, "what it started from"), self._base, over)

    def after(self, name: str, number: int, heads: bool = False) -> State:
        """The model of a run after a round, 0 for its start."""
        if not number:
            return self.start(heads)
        path = self._file(self._kept[name].place(number) / STATE_FILE, name, f"its model after round {number}")
        return Filled(path, self.start(), self._heads(name, number) if heads else {})

    def expert(self, name: str, number: int, task: str, heads: bool = False) -> State:
        """A task's expert of a round."""
        path = self.expert_file(name, number, task)
        below = self.start() if self.records[name].kind == "experts" else self.after(name, number - 1)
        return Filled(path, below, self._heads(name, number) if heads else {})

    def expert_file(self, name: str, number: int, task: str) -> Path:
        """Where that expert lies."""
        return self._file(self._kept[name].expert(number, task), name, f"{task}'s expert of round {number}")

    def _file(self, path: Path, name: str, what: str) -> Path:
        if path.is_file():
            return path
        raise CheckpointError(f"The run {name} in {self.folder.name} has not kept {what}; {_AGAIN}")

    def _heads(self, name: str, number: int) -> dict[str, Tensor]:
        """Heads of a round as tensors of the model; none where heads are frozen."""
        if self.records[name].recipe.tuning.heads != "trained":
            return {}
        given = self.ground.heads
        found = self._kept[name].heads(number, given) or given
        return {f"{HEADS}{key}": tensor for key, tensor in tensors_of(found).items()}


class Filled(Mapping[str, Tensor]):
    """``below`` with a file's tensors in the place of its own, and those of ``over`` besides; nothing of the file is
    held, and what it has beyond ``below`` is left out."""

    def __init__(self, path: Path, below: State, over: State) -> None:
        self._file, self._below, self._over = load(path), below, over

    def __getitem__(self, name: str) -> Tensor:
        if name in self._over:
            return self._over[name]
        if name not in self._file or name not in self._below:
            return self._below[name]
        tensor = self._file[name]
        self._file.close()  # rounds times tasks are more files than a process may hold open
        return tensor

    def __iter__(self) -> Iterator[str]:
        yield from self._below
        yield from (name for name in self._over if name not in self._below)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def from_joint(control: Record, joint: Record | None) -> bool:
    """Whether a control started where the joint run ended: by its losses, for the run may have been made anew."""
    if joint is None or joint.chosen is None or not control.points:
        return False
    begun, ended = control.points[0]["loss"], joint.points[joint.chosen]["loss"]
    return all(math.isclose(begun[task], ended[task], rel_tol=0.01, abs_tol=1e-4) for task in ended if task in begun)


def _origin(record: Record) -> dict[str, Any]:
    recipe = record.recipe
    return {"base": recipe.base_model, "suite": recipe.suite, "tasks": record.tasks, "start": recipe.start,
            "split": recipe.split, "seed": recipe.seed, "heads": recipe.tuning.heads}  # fmt: skip


def _places(folder: Path) -> dict[str, Path]:
    """Folders of runs by name: the folder itself, or those in it."""
    if (folder / RECORD_FILE).is_file():
        return {folder.name: folder}
    inside = [path for path in folder.iterdir() if (path / RECORD_FILE).is_file()] if folder.is_dir() else []
    if not inside:
        raise CheckpointError(
            f"There is no training run at {folder.name}: neither it nor a folder in it has a {RECORD_FILE}."
        )
    known = list(TITLES)
    return {path.name: path for path in sorted(
        inside, key=lambda path: (known.index(path.name) if path.name in known else len(known), path.name)
    )}  # fmt: skip
