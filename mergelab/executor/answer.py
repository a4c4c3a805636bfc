"""How a job travels to a worker and what comes back: bytes both ways, whoever carries them.

Plain pickles on purpose: the pickler of multiprocessing, and with it a pipe's ``send``, would put torch's tensors into
shared memory that the worker must keep alive until the other side has opened it, and that a container has little of.
"""

from __future__ import annotations

import pickle
import sys
import traceback
from collections.abc import Callable
from typing import Any

from ..errors import MergeLabError
from ..progress import Progress, Stop


class JobTraceback(Exception):  # noqa: N818  (it is no error of its own, only the text of one)
    """What a job's worker would have printed; the ``__cause__`` of the error that names the job."""


def ask(job: Callable[..., Any], argument: Any, name: str, dumps: Callable[[Any], bytes] = pickle.dumps) -> bytes:
    """The request to do ``job`` with ``argument``. Raises :class:`MergeLabError` if they cannot be pickled."""
    try:
        return dumps((job, argument))
    except Exception as error:
        raise MergeLabError(
            f"{name} cannot be sent to a worker ({in_a_line(error)}). Use a top-level function and plain data, "
            f"or the inline executor."
        ) from error


def answer(request: bytes, progress: Progress, stop: Stop, threads: int) -> bytes:
    """In the worker: do what is asked and say how it ended, whatever happens."""
    try:
        try:
            job, argument = pickle.loads(request)
            if torch := sys.modules.get("torch"):  # else OMP_NUM_THREADS tells it, when the job imports it
                torch.set_num_threads(threads)
            return pickle.dumps(("done", job(argument, progress, stop)))
        except MergeLabError as error:
            return pickle.dumps(("refused", type(error), str(error)))
    except BaseException as error:  # also SystemExit: the worker goes on
        return pickle.dumps(("failed", in_a_line(error), traceback.format_exc()))


def opened(message: bytes) -> tuple[Any, ...]:
    """A message of a worker: its kind, and what belongs to it."""
    try:
        return tuple(pickle.loads(message))
    except Exception as error:
        return "failed", in_a_line(error), traceback.format_exc()


def result(message: tuple[Any, ...], name: str) -> Any:
    """What the job returned. Raises its :class:`MergeLabError`, or one that names the job for any other error."""
    kind, *rest = message
    if kind == "done":
        return rest[0]
    if kind == "refused":
        try:
            error = rest[0](rest[1])
        except TypeError:  # a class that is not made from its message
            error = MergeLabError(rest[1])
        raise error
    raise failed(name, rest[0]) from JobTraceback(rest[1])


def failed(name: str, line: str) -> MergeLabError:
    """The error of a job that raised what nobody foresaw."""
    return MergeLabError(f"{name} failed with {line}")


def in_a_line(error: BaseException) -> str:
    """``ValueError: the first line of its message``."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
