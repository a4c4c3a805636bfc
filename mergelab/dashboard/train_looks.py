"""Looks at the weights of visitors' runs: a job each, whose result is kept in the run's folder."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Cancelled, MergeLabError
from .errors import sentence
from .jobs import Done, Jobs, Step
from .train_run import Looking, Run

if TYPE_CHECKING:
    from .lab import Lab

_FILE = "look.json"


def job_of(run: Run) -> str:
    """What the job of a run's look is called."""
    return f"{run.name}-look"


def begin(jobs: Jobs, lab: Lab, run: Run) -> Looking:
    """Look at a run; where that is under way already, it is the same look."""
    if run.looking is not None and not run.looking.over:
        return run.looking
    now = run.looking = Looking()

    def work(progress: Any, stop: Any) -> dict[str, Any]:
        def told(cost: Any) -> None:
            now.cost = cost

        found: dict[str, Any] = lab.training(run.selection).look(
            run.folder / "run", told=told, progress=progress, stop=stop
        )
        _keep(run.folder, found)
        return found

    def follow() -> None:
        try:
            for item in jobs.run(job_of(run), work, outlives=True):
                if isinstance(item, Step):
                    now.step = item
                elif isinstance(item, Done):
                    run.look = item.value
            now.status = "done"
        except Cancelled:
            now.said, now.status = "Stopped.", "stopped"
        except Exception as error:  # a sentence for the page; what is not ours goes to the log
            gone = not run.folder.exists()  # the run was let go of in the middle
            now.said, now.status = "Stopped." if gone else sentence(error), "stopped" if gone else "failed"

    threading.Thread(target=follow, daemon=True).start()
    return now


def kept(folder: Path) -> dict[str, Any] | None:
    """What an earlier look at a run has left in its folder."""
    from ..runs.training.look import read_look

    try:
        return read_look(folder / _FILE)
    except MergeLabError:
        return None


def _keep(folder: Path, found: dict[str, Any]) -> None:
    from ..runs.training.look import write_look

    write_look(found, folder / _FILE, overwrite=True)
