"""What every executor does, the simplest one, and the choice of one by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Protocol, TypeAlias, TypeVar

from ..cores import available
from ..errors import MergeLabError, suggest
from ..progress import Progress, Stop
from .answer import failed, in_a_line
from .whole import Whole

#: ``job(argument, progress, stop) -> result``: a top-level function; the argument and the result can be pickled.
Job: TypeAlias = Callable[[Any, Progress, Stop], Any]

_Self = TypeVar("_Self", bound="Executor")


class Executor(Protocol):
    """Runs jobs, ``workers`` of them at a time. A context manager that closes itself."""

    workers: int

    def run(
        self,
        job: Job,
        arguments: Sequence[Any],
        *,
        names: Sequence[str],
        progress: Progress | None = None,
        stop: Stop | None = None,
    ) -> Iterator[tuple[int, Any]]:
        """Do ``job`` with every argument and yield (the argument's place, its result) as they end.

        ``names`` say in progress and errors which job is meant; every job counts as 1000 units of the progress. Jobs
        start when the iteration does, and the next one starts when a result is asked for. Ending the iteration early,
        by an error or by closing it, stops the jobs under way, and the executor can be used again.

        Raises what a job raised if that is a :class:`~mergelab.errors.MergeLabError`, :class:`MergeLabError` with the
        job's name for anything else (what was raised is its ``__cause__``) and for a worker that died twice, and
        :class:`~mergelab.errors.Cancelled` after ``stop``.
        """

    def close(self) -> None:
        """End the workers. The executor cannot be used after that."""

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Inline(Executor):
    """One job after the other, in this process and thread."""

    workers = 1

    def run(
        self,
        job: Job,
        arguments: Sequence[Any],
        *,
        names: Sequence[str],
        progress: Progress | None = None,
        stop: Stop | None = None,
    ) -> Iterator[tuple[int, Any]]:
        return self._run(job, list(zip(arguments, names, strict=True)), Whole(names, progress), stop or Stop())

    def _run(self, job: Job, named: list[tuple[Any, str]], whole: Whole, stop: Stop) -> Iterator[tuple[int, Any]]:
        for place, (argument, name) in enumerate(named):
            stop.check()
            try:
                result = job(argument, partial(whole.told, place), stop)
            except MergeLabError:
                raise
            except Exception as error:
                raise failed(name, in_a_line(error)) from error
            whole.ended(place)
            yield place, result

    def close(self) -> None:
        """Nothing is kept."""


def executor_of(kind: str, workers: int | None = None, threads: int | None = None) -> Executor:
    """The executor called "inline", "local" or "ray".

    ``workers`` jobs run at a time (default: as many as this process has cores), each with ``threads`` threads (default:
    its share of the cores); "inline" has neither. Raises :class:`MergeLabError` for another name, for numbers below 1,
    and where Ray is asked for but missing.
    """
    from .local import Local  # here, for they build on what is above
    from .on_ray import Ray

    if kind == "inline":
        return Inline()
    if kind == "local":
        return Local(workers, threads)
    if kind == "ray":
        return Ray(workers, threads)
    raise MergeLabError(f"There is no executor {kind!r}.{suggest(kind, ('inline', 'local', 'ray'))}")


def at_least_one(workers: int | None, threads: int | None) -> None:
    """Raise :class:`MergeLabError` for a number of workers or threads below 1."""
    for name, number in (("workers", workers), ("threads", threads)):
        if number is not None and number < 1:
            raise MergeLabError(f"The number of {name} is {number}; it must be 1 or more.")


def shared_cores(workers: int | None, threads: int | None) -> tuple[int, int]:
    """(workers, threads of each) that share the cores this process may use, as far as they are not given."""
    at_least_one(workers, threads)
    cores = available()
    workers = workers or cores
    return workers, threads or max(1, cores // workers)
