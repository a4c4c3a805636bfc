"""Visitors' training runs: one at a time, each in a folder of its own, the last few kept.

A run belongs to whoever knows its random name, which the visitor's browser remembers: closing the page does not end it,
and coming back finds it. The tensors of its current model stay here; a page gets plain values. Runs do not take the
place of live answers: they compute beside them.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints.whole import whole_file
from ..errors import Cancelled, MergeLabError
from ..paths import home
from . import train_looks
from .errors import sentence
from .jobs import Jobs, Step
from .train_run import Looking, Run

if TYPE_CHECKING:
    from torch import Tensor

    from ..training.recipe import TrainRecipe
    from .lab import Lab
    from .views import Result

NAMES = {"atm": "ATM", "joint": "joint training", "experts": "experts"}
_NAME = re.compile(r"[0-9a-f]{32}")
_ABOUT = "page.json"
#: Runs whose tensors and folders are kept, and seconds after which a folder that no process knows may go.
_MOST, _OLD = 4, 24 * 3600.0


class Runs:
    """All runs of a lab. Methods may be called from any thread."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.jobs = Jobs()  # of its own: a run that takes minutes must not keep a slider waiting
        self._runs: dict[str, Run] = {}
        self._guard = threading.Lock()

    def start(
        self, selection: Mapping[str, Any], recipe: TrainRecipe, beside: Sequence[str], before: str | None = None
    ) -> Run:
        """Begin a run; ``before``, the visitor's last one, is let go of, and refused while it goes on."""
        old = self.find(before)
        if old is not None and not old.over:
            raise MergeLabError("A run of yours is going on: stop it first, or wait until it ends.")
        if old is not None:
            self._drop(old)
        self._make_room()
        name = secrets.token_hex(16)
        run = Run(name, self._place() / name, dict(selection), recipe.to_dict(), tuple(beside))
        run.folder.mkdir(parents=True)
        about = {"selection": run.selection, "recipe": run.recipe, "beside": list(run.beside)}
        with whole_file(run.folder / _ABOUT) as partial:
            partial.write_text(json.dumps(about), encoding="utf-8")
        with self._guard:
            self._runs[name] = run
        self._launch(run, resume=False)
        return run

    def find(self, name: str | None) -> Run | None:
        """A run by its name, also one that an earlier process was ended in the middle of."""
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            return None
        with self._guard:
            return self._runs.get(name) or self._restored(name)

    def resume(self, name: str | None) -> Run:
        """Go on with a run that was paused, or that failed."""
        run = self._known(name)
        if run.status not in ("paused", "failed"):
            raise MergeLabError("This run is not paused; start a new one.")
        run.begins()
        self._launch(run, resume=True)
        return run

    def pause(self, name: str | None) -> Run:
        """End a run's work; what it finished stays, and it can go on."""
        run = self._known(name)
        if run.over:
            raise MergeLabError("Nothing is running.")
        run.said = "pausing"
        self.jobs.stop(run.name)
        return run

    def stop(self, name: str | None) -> Run:
        """End a run for good: its numbers stay on the page, its folder goes."""
        run = self._known(name)
        if run.status in ("stopped", "done"):
            raise MergeLabError("Nothing is running.")
        if run.over:
            self._ended(run, "stopped", "Stopped.")
            shutil.rmtree(run.folder, ignore_errors=True)
        else:
            run.said = "stopping"
            self.jobs.stop(run.name)
        return run

    def look(self, name: str | None) -> Looking:
        """Begin a look at the weights of a run that is done, or go on with the one that is under way."""
        run = self._known(name)
        if run.status != "done":
            raise MergeLabError("The weights can be looked at once the run has ended.")
        return train_looks.begin(self.jobs, self._lab, run)

    def stop_look(self, name: str | None) -> None:
        """End that look; the run stays."""
        self.jobs.stop(train_looks.job_of(self._known(name)))

    # ---- the work ----------------------------------------------------------------------------------------------------

    def _launch(self, run: Run, *, resume: bool) -> None:
        def work_(progress: Any, stop: Any) -> dict[str, Any]:
            return self._train(run, resume, progress, stop)

        def follow() -> None:
            try:
                for item in self.jobs.run(run.name, work_, outlives=True):
                    if isinstance(item, Step):
                        run.moves(item)
                self._ended(run, "done", "")
            except Cancelled as error:
                gone = run.said == "stopping"
                self._ended(run, "stopped" if gone else "paused", "Stopped." if gone else str(error))
                if gone:
                    shutil.rmtree(run.folder, ignore_errors=True)
            except Exception as error:  # a sentence for the page; what is not ours goes to the log
                self._ended(run, "failed", sentence(error))

        threading.Thread(target=follow, daemon=True).start()

    def _ended(self, run: Run, status: str, said: str) -> None:
        run.status, run.said, run.step = status, said, None
        run.version += 1

    def _train(self, run: Run, resume: bool, progress: Any, stop: Any) -> dict[str, Any]:
        from ..training.recipe import TrainRecipe

        recipe, bench = TrainRecipe.from_dict(run.recipe), self._lab.training(run.selection)

        def news(kind: str, record: Any, state: Mapping[str, Tensor]) -> None:
            run.document = _read(run.folder)
            if kind == recipe.train and state and record.rounds:
                self._feed(run, record, state, stop)
            run.version += 1

        run.document = bench.compare(
            recipe, run.folder / "run", run.beside, resume=resume, news=news, progress=progress, stop=stop
        )  # fmt: skip
        return run.document

    def _feed(self, run: Run, record: Any, state: Mapping[str, Tensor], stop: Any) -> None:
        """The model after a round, for the other tabs: measured as they measure, its tensors at hand."""
        number, last = len(record.rounds), record.rounds[-1]
        if run.current is not None and run.current["round"] == number:
            return
        run.state = dict(state)
        run.current = {
            "run": run.name, "kind": record.kind, "round": number, "of": record.recipe.budget.rounds,
            "tasks": list(record.tasks), "titles": dict(record.titles), "cosines": last.get("cosines"),
            "norms": last.get("norms"), "selection": run.selection,
        }  # fmt: skip
        try:
            run.result = self._measured(run, record.data_used, self._lab.settings.per_task, None, stop)
        except Cancelled:
            raise
        except MergeLabError as error:  # a suite without heads cannot be measured so; the curve has its own numbers
            run.said = str(error)

    def whole(self, name: str, progress: Any, stop: Any) -> Result | None:
        """The result of a run that is done, on whole test sets; None for any other."""
        run = self.find(name)
        if run is None or run.status != "done" or run.result is None or run.state is None:
            return None
        if run.result["per_task"] is not None:
            used = next(iter((run.document or {})["runs"].values()))["data_used"]
            run.result = self._measured(run, used, None, progress, stop)
        return run.result

    def _measured(self, run: Run, used: str, per_task: int | None, progress: Any, stop: Any) -> Result:
        from ..training.recipe import TrainRecipe
        from . import work

        assert run.state is not None and run.current is not None
        started = time.perf_counter()
        evaluation = self._lab.training(run.selection).evaluate(run.state, per_task, progress, stop)
        base, experts = work.references(self._lab, run.selection, per_task, None, stop)
        name, number = NAMES[run.current["kind"]], run.current["round"]
        used = "; ".join(filter(None, (used, evaluation.get("data_used"))))
        return {
            "id": f"training/{run.name}", "label": f"{name[:1].upper()}{name[1:]}, round {number}",
            "method": run.current["kind"], "recipe": run.recipe, "hash": TrainRecipe.from_dict(run.recipe).hash,
            "base": base, "experts": experts, "evaluation": {**evaluation, "data_used": used},
            "titles": self._lab.titles(run.selection), "per_task": per_task, "tuned": False,
            "seconds": time.perf_counter() - started,
        }  # fmt: skip

    # ---- what is kept ------------------------------------------------------------------------------------------------

    def predict(self, current: Mapping[str, Any], picture: Mapping[str, Any]) -> dict[str, Any] | None:
        """Class probabilities of a run's current model; None once the run has gone on or is let go of."""
        run = self.find(current["run"])
        if run is None or run.state is None:
            return None
        return self._lab.training(run.selection).predict(run.state, picture)

    def _known(self, name: str | None) -> Run:
        run = self.find(name)
        if run is None:
            raise MergeLabError("There is no run yet: press Start.")
        return run

    def _place(self) -> Path:
        place = home() / "training"
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        return place

    def _restored(self, name: str) -> Run | None:
        """From its folder: paused, whatever it was."""
        folder = self._place() / name
        try:
            about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
            run = Run(name, folder, about["selection"], about["recipe"], tuple(about["beside"]), "paused")
            run.document, run.look = _read(folder), train_looks.kept(folder)
            parts = [run.document["runs"].get(kind) for kind in (run.recipe["train"], *run.beside) if kind != "alpha"]
            done, of = len(parts[0]["rounds"]) if parts[0] else 0, run.recipe["budget"]["rounds"]
        except (OSError, ValueError, KeyError, TypeError, MergeLabError):
            return None
        if all(part and part["status"] == "done" for part in parts):
            run.status = "done"
        else:
            run.said = f"Kept from an earlier time: {done} of {of} rounds; resume goes on from there."
        run.version = 1
        self._runs[name] = run
        return run

    def _drop(self, run: Run) -> None:
        with self._guard:
            self._runs.pop(run.name, None)
        run.state = None
        self.jobs.stop(train_looks.job_of(run))
        shutil.rmtree(run.folder, ignore_errors=True)

    def _make_room(self) -> None:
        """Before a new run: the oldest that are over go, and folders that no process has touched for a day."""
        with self._guard:
            over = [run for run in self._runs.values() if run.over]
            known = set(self._runs)
        for run in over[: max(0, len(known) - _MOST + 1)]:
            self._drop(run)
        for path in self._folders():
            if path.name not in known and time.time() - _touched(path) > _OLD:
                shutil.rmtree(path, ignore_errors=True)

    def _folders(self) -> Iterator[Path]:
        yield from (path for path in self._place().iterdir() if _NAME.fullmatch(path.name) and path.is_dir())


def _read(folder: Path) -> dict[str, Any]:
    """The document as the run has written it so far."""
    from ..runs.training.compare import read_compare

    return read_compare(folder / "run")


def _touched(folder: Path) -> float:
    """When a run last wrote into its folder."""
    paths = [folder, folder / "run", folder / "run" / "compare.json"]
    return max((path.stat().st_mtime for path in paths if path.exists()), default=time.time())
