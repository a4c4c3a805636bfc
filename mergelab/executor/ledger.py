"""What a run still has to do, what has ended, and what went wrong."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any

from ..errors import MergeLabError
from ..progress import Progress
from .answer import result
from .whole import Whole


class Ledger:
    """The books of one run, the same for every kind of worker. Not for several threads.

    A job whose worker died is put first in the queue once more. After the first failure no job begins.
    """

    def __init__(self, arguments: Sequence[Any], names: Sequence[str], progress: Progress | None) -> None:
        self.jobs = list(zip(arguments, names, strict=True))  # by place
        self.whole = Whole(names, progress)
        self._todo = deque(range(len(self.jobs)))
        self._deaths = Counter[int]()
        self._ended: list[tuple[int, Any]] = []
        self._failure: MergeLabError | None = None

    def next(self) -> int | None:
        """The place of the job to begin now."""
        return self._todo.popleft() if self._todo and self._failure is None else None

    def answered(self, place: int, message: tuple[Any, ...]) -> None:
        """Book a worker's answer."""
        try:
            self._ended.append((place, result(message, self.jobs[place][1])))
            self.whole.ended(place)
        except MergeLabError as error:
            self._failure = self._failure or error

    def lost(self, place: int, how: str, advice: str) -> None:
        """Book the death of a worker: ``how`` fits in brackets, ``advice`` is a sentence."""
        self._deaths[place] += 1
        if self._deaths[place] == 1:
            self._todo.appendleft(place)
        else:
            name = self.jobs[place][1]
            self._failure = self._failure or MergeLabError(f"The worker of {name} died twice ({how}). {advice}")

    def results(self) -> Iterator[tuple[int, Any]]:
        """The results since the last call; then raise the first failure, if there is one."""
        ended, self._ended = self._ended, []
        yield from ended
        if self._failure is not None:
            raise self._failure
