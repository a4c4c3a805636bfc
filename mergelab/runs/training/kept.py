"""What a run keeps on disk between rounds: states, heads, what a course goes on from."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ...checkpoints.whole import check_target
from ...tasks import Head
from ...training import statefile
from ...training.recipe import TrainRecipe
from ...training.work import Course, with_tensors
from .record import Record

#: What the one course of joint training is called.
ALL = "all"
STATE_FILE, _HEADS, _START = "state.safetensors", "heads.safetensors", "start.safetensors"
#: What is in a run's folder; anything else in it is not ours to delete.
_OURS = {"run.json", "rounds", "model", "experts", "curves.csv", "README.md"}


class Kept:
    """The folder of a run: ``rounds/NNNNN/`` for every round, 0 for what was started from."""

    def __init__(self, folder: Path, recipe: TrainRecipe) -> None:
        self.folder, self.recipe = folder, recipe

    def make_ready(self, overwrite: bool) -> None:
        """An empty folder; an earlier run in it goes only if ``overwrite``, and nothing but a run goes ever."""
        if self.folder.is_dir() and any(self.folder.iterdir()):
            ours = overwrite and {path.name for path in self.folder.iterdir()} <= _OURS
            check_target(self.folder, ours)
            Record.read(self.folder)
            shutil.rmtree(self.folder)
        check_target(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def place(self, number: int) -> Path:
        return self.folder / "rounds" / f"{number:05d}"

    # ---- what a run starts from --------------------------------------------------------------------------------------

    @property
    def start_file(self) -> Path | None:
        """The weights of a merge that the run starts from; None for the base's own."""
        return None if self.recipe.start is None else self.place(0) / _START

    def save_start(self, tensors: Mapping[str, Tensor]) -> None:
        self.place(0).mkdir(parents=True, exist_ok=True)
        statefile.save(self.place(0) / _START, tensors, {"hash": self.recipe.hash})

    # ---- states ------------------------------------------------------------------------------------------------------

    def save(self, number: int, state: Mapping[str, Tensor]) -> None:
        statefile.save(self.place(number) / STATE_FILE, state, {"hash": self.recipe.hash, "round": number})

    def state(self, number: int) -> dict[str, Tensor]:
        """The tensors that training changed, after a round."""
        return statefile.read(self.place(number) / STATE_FILE) if number else {}

    def expert(self, number: int, name: str) -> Path:
        return self.place(number) / f"{name}.safetensors"

    def heads(self, number: int, given: Mapping[str, Head]) -> dict[str, Head] | None:
        """Heads as a round left them; None where heads are not trained."""
        path = self.place(number) / _HEADS
        return with_tensors(given, statefile.read(path)) if number and path.is_file() else None

    def gather_heads(self, number: int) -> None:
        """One file of the heads that the round's courses trained apart."""
        files = sorted(self.place(number).glob("*.heads.safetensors"))
        if files:
            found: dict[str, Tensor] = {}
            for path in files:
                found |= statefile.read(path)
            statefile.save(self.place(number) / _HEADS, found, {"hash": self.recipe.hash})

    # ---- courses -----------------------------------------------------------------------------------------------------

    def courses(self, number: int, told: str, names: tuple[str, ...], device: str) -> list[Course]:
        """A round's courses: each expert from the round's base (atm) or from where it was (experts), or all tasks
        together (joint)."""
        recipe, place, before = self.recipe, self.place(number), self.place(number - 1)
        place.mkdir(parents=True, exist_ok=True)
        fresh = recipe.train == "atm"
        carried = not fresh or recipe.keep_optimiser
        start = before / STATE_FILE if fresh and number > 1 else self.start_file
        trained = recipe.tuning.heads == "trained"

        def course(tasks: tuple[str, ...], name: str) -> Course:
            def text(wanted: bool, path: Path) -> str | None:
                return str(path) if wanted else None

            return Course(
                told, tasks, number, str(self.expert(number, name)), f"{recipe.hash}/{number}/{name}", device,
                start=None if start is None else str(start),
                before=text(carried and number > recipe.join.get(name, 1), before / f"{name}.saved.safetensors"),
                moments_only=fresh,
                saved=text(carried and number < recipe.budget.rounds, place / f"{name}.saved.safetensors"),
                heads=text(trained and fresh and number > 1, before / _HEADS),
                heads_out=text(trained, place / f"{name}.heads.safetensors"),
            )  # fmt: skip

        if recipe.train == "joint":
            return [course(names, ALL)]
        return [course((name,), name) for name in names if recipe.join.get(name, 1) <= number]

    def let_go(self, number: int, best: int) -> None:
        """Delete what neither the next round nor the result needs once round ``number`` is in the record."""
        for place in sorted((self.folder / "rounds").iterdir()):
            at = int(place.name) if place.is_dir() and place.name.isdigit() else 0
            if 0 < at < number and at != best:
                shutil.rmtree(place, ignore_errors=True)
            elif at and self.recipe.train == "atm":
                for path in place.glob("*.safetensors"):
                    if path.name not in (STATE_FILE, _HEADS) and not path.name.endswith(".saved.safetensors"):
                        path.unlink(missing_ok=True)
