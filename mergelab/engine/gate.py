"""A limit on what several workers hold in memory at once."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

#: Statistics that are in memory at the same time, unless a single tensor needs more.
GATE_BYTES = 3 * 2**29


class Gate:
    """Lets workers in, in their order, while the sum of what they hold fits; a single one always fits."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._queue: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Wait until ``size`` more bytes fit, hold them for the block."""
        if not size:
            yield
            return
        ticket = object()
        with self._changed:
            self._queue.append(ticket)
            self._changed.wait_for(
                lambda: self._queue[0] is ticket and (not self._held or self._held + size <= self._limit)
            )
            self._queue.popleft()
            self._held += size
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._held -= size
                self._changed.notify_all()
