"""The progress of several jobs as one."""

from __future__ import annotations

from collections.abc import Sequence

from ..progress import Progress, report

UNITS = 1000  # that each job counts


class Whole:
    """Adds up what the jobs tell. It never goes back, not even when a job is run again."""

    def __init__(self, names: Sequence[str], progress: Progress | None) -> None:
        self._names = list(names)
        self._progress = progress
        self._parts = [0] * len(self._names)

    def told(self, place: int, done: int, total: int, text: str) -> None:
        """The job at ``place`` is at ``done`` of ``total`` (0: not known)."""
        if total > 0:
            self._parts[place] = max(self._parts[place], min(UNITS, UNITS * done // total))
        report(self._progress, sum(self._parts), UNITS * len(self._parts), f"{self._names[place]}: {text}")

    def ended(self, place: int) -> None:
        self.told(place, 1, 1, "done")
