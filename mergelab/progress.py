"""Progress that is reported and work that can be stopped, the same way in every room."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeAlias

from .errors import Cancelled

#: ``progress(done, total, text)``, called from the working thread after each step.
Progress: TypeAlias = Callable[[int, int, str], None]


class Stop:
    """A flag that one thread sets and the working thread looks at between two steps."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Ask the work to end at its next step."""
        self._event.set()

    def is_set(self) -> bool:
        return self._event.is_set()

    def check(self) -> None:
        """Raise :class:`~mergelab.errors.Cancelled` if the work was asked to end."""
        if self._event.is_set():
            raise Cancelled("Stopped on request. Nothing was written.")


def report(progress: Progress | None, done: int, total: int, text: str) -> None:
    """Call ``progress`` if there is one."""
    if progress is not None:
        progress(done, total, text)
