"""Jobs that workers import: quick ones, and ones that wait for a file, stop, fail or die."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from mergelab.errors import MergeLabError
from mergelab.progress import Progress, Stop


class OwnError(MergeLabError):
    """Not made from its message alone."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(f"{text} {number}")


def each(argument: tuple[Any, Any], progress: Progress, stop: Stop) -> Any:
    """A job of its own for every argument: (job, its argument)."""
    job, own = argument
    return job(own, progress, stop)


def square(number: int, progress: Progress, stop: Stop) -> int:
    return number**2


def stepping(steps: int, progress: Progress, stop: Stop) -> int:
    """Tells all steps, and then once more that it is at the first."""
    for step in range(steps):
        progress(step, steps, f"step {step}")
        time.sleep(0.05)
    progress(0, steps, "again")
    return steps


def see(path: Path) -> None:
    """Wait until a file is there."""
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until, f"{path} never came"
        time.sleep(0.01)


def meet(files: tuple[Path, Path], progress: Progress, stop: Stop) -> int:
    """Write a file and wait for the one of another job, so both must run at the same time; this process's id."""
    mine, other = files
    mine.touch()
    see(other)
    return os.getpid()


def after(file_error: tuple[Path, Exception], progress: Progress, stop: Stop) -> None:
    """Raise an error once a file is there."""
    see(file_error[0])
    raise file_error[1]


def raising(error: BaseException, progress: Progress, stop: Stop) -> None:
    raise error


def refusing(text: str, progress: Progress, stop: Stop) -> None:
    raise OwnError(7, text)


def until_stopped(folder: Path, progress: Progress, stop: Stop) -> None:
    """Write `began`, wait for the stop, write `stopped`."""
    (folder / "began").touch()
    while not stop.is_set():
        time.sleep(0.01)
    (folder / "stopped").touch()
    stop.check()


def deaf(folder: Path, progress: Progress, stop: Stop) -> None:
    """Write this process's id and never look at the stop."""
    (folder / "coming").write_text(str(os.getpid()))
    (folder / "coming").rename(folder / "began")
    time.sleep(600)


def dying(_: Any, progress: Progress, stop: Stop) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying_noted(file: Path, progress: Progress, stop: Stop) -> None:
    """Write a line and die."""
    with file.open("a") as notes:
        notes.write("died\n")
    dying(None, progress, stop)


def exiting(code: int, progress: Progress, stop: Stop) -> None:
    os._exit(code)


def dying_once(file: Path, progress: Progress, stop: Stop) -> str:
    """Die unless a file says that it did before."""
    if not file.exists():
        file.touch()
        dying(None, progress, stop)
    return "second try"


def told_threads(_: Any, progress: Progress, stop: Stop) -> list[str]:
    return [os.environ[f"{library}_NUM_THREADS"] for library in ("OMP", "MKL", "OPENBLAS")]


def torch_threads(_: Any, progress: Progress, stop: Stop) -> Any:
    import torch

    return torch.get_num_threads(), torch.arange(6.0)


def unpicklable(_: Any, progress: Progress, stop: Stop) -> Any:
    return lambda: None
