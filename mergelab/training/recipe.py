"""The training recipe: everything that determines a training run, in one object, and its forms.

::

    train: atm                     # atm | joint | experts
    base_model: zoo:starter/base
    suite: starter
    tasks: [mnist, cifar10]        # default: every task of the suite that has an expert
    start: {merge_method: ties, …} # a recipe or a source to start from; default: the base
    split: train                   # train, or val: few labels, of which a share is held for choosing
    images: 400                    # at most so many items a task; default: all
    budget: {rounds: 2, epochs: 1} # or steps: 5 in place of epochs
    aggregation: {merge_method: mean, scale: 1.0}
    tuning: {optimiser: adamw, rate: 0.001, tune: lora}
    keep: last                     # which round is the result: last, or best on held validation items
    watch: {split: test, limit: 100}
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from ..errors import MethodError, RecipeError, suggest
from ..recipe import Recipe
from ..recipe import text as forms
from ..recipe.checks import kind, shown, unknown
from .aggregate import Aggregation
from .tuning import Tuning

KINDS = ("atm", "joint", "experts")
SPLITS = ("train", "val")
KEEPS = ("last", "best")
WATCHED = ("held", "val", "test", "none")
#: The share of the validation items that is not trained on where ``split`` is ``val``.
HELD = 0.2
_T = TypeVar("_T")


@dataclass(frozen=True)
class Budget:
    """``rounds`` K of ``epochs`` e each (or of ``steps`` each, that all tasks take together): K·e epochs a task."""

    rounds: int = 10
    epochs: int = 1
    steps: int | None = None

    def __post_init__(self) -> None:
        for name, most in (("rounds", 100_000), ("epochs", 10_000), ("steps", 10_000_000)):
            value = getattr(self, name)
            if value is None and name == "steps":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise RecipeError(
                    f"{name!r} of the budget must be a whole number from 1 to {most}, not {shown(value)}."
                )
        if self.steps is not None and self.epochs != 1:
            raise RecipeError("The budget has 'epochs' or 'steps' a round, not both.")


@dataclass(frozen=True)
class Watch:
    """What the model after every round is measured on: ``split`` (``held``: validation items that are not trained on)
    and at most ``limit`` items a task. It never changes the result, unless ``keep: best``, which looks at held ones."""

    split: str = "held"
    limit: int | None = 100

    def __post_init__(self) -> None:
        if self.split not in WATCHED:
            raise RecipeError(f"'split' to watch cannot be {shown(self.split)}.{suggest(str(self.split), WATCHED)}")
        if self.limit is not None and (
            isinstance(self.limit, bool) or not isinstance(self.limit, int) or self.limit < 1
        ):
            raise RecipeError(f"'limit' to watch must be a whole number from 1, not {shown(self.limit)}.")


@dataclass(frozen=True)
class TrainRecipe:
    """Everything that determines a training run. Frozen; any instance is well-formed; RecipeError names what is not.

    ``join`` names tasks that take part from a later round on (continual ATM), by the round's number. ``combine`` is how
    joint training puts gradients together. ``keep_optimiser`` carries AdamW's moments over rounds
    (ATM starts them afresh by default, as its authors do).
    """

    train: str
    base_model: str
    suite: str
    tasks: tuple[str, ...] | None = None
    start: Recipe | str | None = None
    split: str = "train"
    images: int | None = None
    budget: Budget = field(default_factory=Budget)
    aggregation: Aggregation = field(default_factory=Aggregation)
    tuning: Tuning = field(default_factory=Tuning)
    join: Mapping[str, int] = field(default_factory=dict)
    combine: str = "mean"
    keep_optimiser: bool = False
    keep: str = "last"
    watch: Watch = field(default_factory=Watch)
    seed: int = 0
    title: str | None = None

    def __post_init__(self) -> None:
        choices = {"train": KINDS, "split": SPLITS, "keep": KEEPS, "combine": ("mean", "pcgrad")}
        for name, allowed in choices.items():
            value = getattr(self, name)
            if not isinstance(value, str) or value not in allowed:
                raise RecipeError(f"{name!r} cannot be {shown(value)}.{suggest(str(value), allowed)}")
        for name in ("base_model", "suite"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise RecipeError(f"A training recipe names its {name!r}, such as zoo:starter/base and starter.")
        if self.tasks is not None:
            if isinstance(self.tasks, str) or not all(isinstance(t, str) and t for t in self.tasks) or not self.tasks:
                raise RecipeError("'tasks' must be a list of at least one task's name.")
            if len(set(self.tasks)) != len(self.tasks):
                raise RecipeError(f"'tasks' names a task twice: {', '.join(self.tasks)}.")
            object.__setattr__(self, "tasks", tuple(self.tasks))
        if self.images is not None and (isinstance(self.images, bool) or not isinstance(self.images, int)
                                        or self.images < 1):  # fmt: skip
            raise RecipeError(f"'images' must be a whole number from 1, not {shown(self.images)}.")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**31:
            raise RecipeError(f"'seed' must be a whole number from 0 to 2^31 - 1, not {shown(self.seed)}.")
        object.__setattr__(self, "join", _joins(self.join, self.tasks, self.budget.rounds))
        if not isinstance(self.keep_optimiser, bool):
            raise RecipeError(f"'keep_optimiser' must be true or false, not {shown(self.keep_optimiser)}.")
        object.__setattr__(self, "tuning", dataclasses.replace(self.tuning, seed=self.seed))
        self._together()

    def _together(self) -> None:
        """What does not go together, said before anything is read."""
        if self.combine == "pcgrad" and self.train != "joint":
            raise RecipeError("'combine: pcgrad' is for joint training; in ATM take the aggregation 'pcgrad'.")
        if self.train != "atm" and self.aggregation != Aggregation():
            raise RecipeError(f"'aggregation' is for atm; {self.train} has no rounds that are merged.")
        if self.join and self.train != "atm":
            raise RecipeError(f"'join' is for atm; {self.train} has no rounds that a task could join at.")
        if self.join and self.tasks is not None and all(self.join.get(task, 1) > 1 for task in self.tasks):
            raise RecipeError("Every task would 'join' later; at least one takes part from the first round.")
        if self.keep_optimiser and self.train == "atm" and self.tuning.tune == "lora":
            raise RecipeError("'keep_optimiser' needs tune: full; with LoRA every round has new adapters.")
        if self.split == "val" and self.watch.split == "val":
            raise RecipeError("The validation items are trained on, so watch the held ones (split: held) or test.")
        if self.tuning.optimiser == "gd" and self.budget.steps is None and self.tuning.pace == "steps":
            raise RecipeError("Full-batch 'gd' takes one step an epoch; leave 'pace' out.")
        if self.tasks is not None:
            self.check_merges(self.tasks)

    def check_merges(self, tasks: Sequence[str]) -> None:
        """RecipeError where a round of these ``tasks`` could not be merged: a wrong parameter, too many experts."""
        for first in sorted({1, *self.join.values()}):
            experts = [task for task in tasks if self.join.get(task, 1) <= first]
            try:
                self.aggregation.check(experts)
            except MethodError as error:
                at = f" at round {first}, where {len(experts)} tasks take part" if first > 1 else ""
                raise RecipeError(f"aggregation{at}: {error}") from None

    # ---- forms -------------------------------------------------------------------------------------------------------

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrainRecipe:
        """The recipe that plain data describes; an unknown key is an error with a suggestion."""
        if not isinstance(data, Mapping):
            raise RecipeError(f"A training recipe is a mapping that starts with 'train', not {kind(data)}.")
        keys = tuple(f.name for f in fields(cls))
        for key in data:
            if key not in keys:
                raise RecipeError(unknown(key, keys, "the training recipe"))
        for key in ("train", "base_model", "suite"):
            if data.get(key) is None:
                raise RecipeError(f"The training recipe has no {key!r}.")
        values = {key: value for key, value in data.items() if value is not None}
        if isinstance(values.get("start"), Mapping):
            values["start"] = Recipe.from_dict(values["start"])
        elif not isinstance(values.get("start", ""), str | Recipe):
            raise RecipeError(f"'start' must be a recipe or a source, not {kind(values['start'])}.")
        split = values.get("split", "train")
        usual = {"split": "held"} if split == "val" else {"split": "test"}
        values["watch"] = _made(Watch, {**usual, **_section(values.get("watch"), "watch")}, "watch")
        tuning = _section(values.get("tuning"), "tuning")
        if isinstance(values.get("tuning"), Tuning):
            tuning.pop("seed")
        if "seed" in tuning:
            raise RecipeError("tuning: the seed is the recipe's own; write 'seed' at the top.")
        seed = {"seed": values["seed"]} if isinstance(values.get("seed"), int) else {}
        values["tuning"] = _made(Tuning, {**tuning, **seed}, "tuning")
        for key, made in (("budget", Budget), ("aggregation", Aggregation)):
            values[key] = _made(made, _section(values.get(key), key), key)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain data in a readable order, the sections written out; :meth:`from_dict` reads the same recipe back."""
        start = self.start.to_dict() if isinstance(self.start, Recipe) else self.start
        tuning = {key: value for key, value in self.tuning.to_dict().items() if key != "seed"}
        out: dict[str, Any] = {
            "train": self.train, "base_model": self.base_model, "suite": self.suite,
            "tasks": list(self.tasks) if self.tasks else None, "start": start, "split": self.split,
            "images": self.images, "budget": asdict(self.budget), "join": dict(self.join) or None,
            "aggregation": self.aggregation.to_dict(),
            "combine": self.combine, "tuning": tuning, "keep_optimiser": self.keep_optimiser,
            "keep": self.keep, "watch": asdict(self.watch), "seed": self.seed, "title": self.title,
        }  # fmt: skip
        return {key: value for key, value in out.items() if value is not None}

    @classmethod
    def from_yaml(cls, text: str | bytes) -> TrainRecipe:
        """The recipe in a YAML text of at most 64 KB (no aliases, no tags, no repeated keys)."""
        return cls.from_dict(forms.read(text))

    def to_yaml(self) -> str:
        return forms.write(self.to_dict())

    @classmethod
    def read(cls, path: str | Path, **changes: Any) -> TrainRecipe:
        """The recipe in a file (YAML, or JSON by its suffix), with top-level values put in the place of the file's."""
        path = Path(path)
        try:
            with path.open("rb") as file:
                text = file.read(forms.MAX_BYTES + 1)
        except OSError as error:
            raise RecipeError(f"The training recipe {path} cannot be read: {error.strerror or error}.") from None
        try:
            data = forms.read_json(text) if path.suffix.lower() == ".json" else forms.read(text)
            if isinstance(data, Mapping) and "merge_method" in data and "train" not in data:
                raise RecipeError("this is a recipe of a merge; a training recipe starts with 'train: atm'.")
            return cls.from_dict({**data, **changes} if isinstance(data, Mapping) else data)
        except RecipeError as error:
            raise RecipeError(f"{path.name}: {error}") from None

    def replace(self, **changes: Any) -> TrainRecipe:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def of_kind(self, kind: str) -> TrainRecipe:
        """The same tasks, items, budget and tuning for another kind of training, without what only ATM has."""
        plain = {"aggregation": Aggregation(), "keep_optimiser": False, "join": {}} if kind != "atm" else {}
        return self.replace(train=kind, combine=self.combine if kind == self.train else "mean", **plain)

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of what determines the trained weights: the title and what is watched do not."""
        data = self.to_dict()
        start = self.start.hash if isinstance(self.start, Recipe) else self.start
        essence = {**{k: v for k, v in data.items() if k not in ("title", "watch")}, "start": start}
        return hashlib.sha256(json.dumps(_canonical(essence), sort_keys=True).encode()).hexdigest()


def _joins(value: Any, tasks: tuple[str, ...] | None, rounds: int) -> dict[str, int]:
    if not isinstance(value, Mapping):
        raise RecipeError(f"'join' must be a mapping of tasks to rounds, not {kind(value)}.")
    for task, number in value.items():
        if tasks is None or task not in tasks:
            raise RecipeError(f"'join' names {shown(task)}, which is not among 'tasks'; list all tasks there.")
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= rounds:
            raise RecipeError(f"{task} must join at a round from 1 to {rounds}, not {shown(number)}.")
    return dict(value)


def _canonical(value: Any) -> Any:
    """1 and 1.0 alike, at any depth."""
    if isinstance(value, Mapping):
        return {key: _canonical(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(inner) for inner in value]
    return float(value) if type(value) is int else value


def _section(value: Any, name: str) -> dict[str, Any]:
    if value is None:
        return {}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in fields(value)}
    if not isinstance(value, Mapping):
        raise RecipeError(f"{name!r} must be a mapping, not {kind(value)}.")
    return dict(value)


def _made(cls: type[_T], data: dict[str, Any], where: str) -> _T:
    keys = tuple(f.name for f in fields(cls))  # type: ignore[arg-type]
    for key in data:
        if key not in keys:
            raise RecipeError(unknown(key, keys, where))
    try:
        return cls(**data)
    except (MethodError, RecipeError) as error:
        raise RecipeError(f"{where}: {error}") from None
