"""Work that takes a while: one at a time, with progress, a Stop that stops, and background work that gives way.

Gradio runs an event again only when the last one has ended, so that a refinement of 20 seconds inside the event would
make the next slider wait. Here a newer request of a visitor ends their older one, and background work of anyone pauses
while somebody waits for a live answer.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from ..errors import Cancelled
from ..progress import Progress, Stop

Work: TypeAlias = Callable[[Progress, Stop], Any]
_TICK = 0.2  # seconds between two looks at a working thread


class Superseded(Cancelled):
    """The work was ended because the same visitor asked for something newer."""


@dataclass(frozen=True)
class Step:
    """How far a job is: ``done`` of ``total`` (0: not known), in words."""

    done: int
    total: int
    text: str


@dataclass(frozen=True)
class Done:
    """The last item of a job: what it made, and the seconds it worked (without waiting)."""

    value: Any
    seconds: float


class _Either(Stop):
    """Set when any of several stops is set."""

    def __init__(self, *stops: Stop) -> None:
        super().__init__()
        self._stops = stops

    def is_set(self) -> bool:
        return any(stop.is_set() for stop in self._stops)

    def check(self) -> None:
        for stop in self._stops:
            stop.check()


class Jobs:
    """The one place where heavy work runs. Methods may be called from any thread."""

    def __init__(self) -> None:
        self._slot = threading.Lock()  # held by the thread that computes
        self._guard = threading.Lock()  # protects what is below
        self._running: dict[str, list[Stop]] = {}
        self._superseded: set[int] = set()
        self._waiting = 0
        self._pause: Stop | None = None  # of the background work that runs now
        self._now = ""

    def stop(self, session: str, *, superseded: bool = False) -> int:
        """Ask all work of a visitor to end; how many jobs were asked. ``superseded``: by something newer of theirs."""
        with self._guard:
            stops = list(self._running.get(session, ()))
            if superseded:
                self._superseded.update(id(stop) for stop in stops)
        for stop in stops:
            stop.set()
        return len(stops)

    def run(
        self, session: str, work: Work, *, background: bool = False, outlives: bool = False
    ) -> Iterator[Step | Done]:
        """Run ``work(progress, stop)`` in a thread and yield how far it is, then :class:`Done`.

        Raises what the work raised; :class:`~mergelab.errors.Cancelled` after :meth:`stop`. Closing the generator (the
        visitor left) stops the work, unless it ``outlives`` the page: then it runs on, and its result is where it was
        put.
        """
        stop = Stop()
        with self._guard:
            self._running.setdefault(session, []).append(stop)
        news: queue.Queue[Step | Done | BaseException] = queue.Queue()
        target = self._in_background if background else self._in_front
        threading.Thread(target=self._thread, args=(target, work, stop, news), daemon=True).start()
        left = False
        try:
            yield from _follow(news)
        except GeneratorExit:
            left = outlives
            raise
        except Cancelled as error:
            if id(stop) in self._superseded:
                raise Superseded(str(error)) from None
            raise
        finally:
            if not left:
                stop.set()
            with self._guard:
                self._superseded.discard(id(stop))
                self._running[session].remove(stop)
                if not self._running[session]:
                    del self._running[session]

    def _thread(self, target: Callable[..., Done], work: Work, stop: Stop, news: queue.Queue[Any]) -> None:
        def progress(done: int, total: int, text: str) -> None:
            self._now = text
            news.put(Step(done, total, text))

        try:
            news.put(target(work, stop, progress, news))
        except BaseException as error:  # handed to the generator, which raises it
            news.put(error)

    def _in_front(self, work: Work, stop: Stop, progress: Progress, news: queue.Queue[Any]) -> Done:
        with self._guard:
            self._waiting += 1
            if self._pause is not None:
                self._pause.set()
        try:
            while not self._slot.acquire(timeout=_TICK):
                stop.check()
                news.put(Step(0, 0, f"waiting for other work ({self._now})" if self._now else "waiting for other work"))
        finally:
            with self._guard:
                self._waiting -= 1
        try:
            stop.check()
            started = time.perf_counter()
            return Done(work(progress, stop), time.perf_counter() - started)
        finally:
            self._now = ""
            self._slot.release()

    def _in_background(self, work: Work, stop: Stop, progress: Progress, news: queue.Queue[Any]) -> Done:
        while True:
            pause = Stop()
            with self._guard:
                free = self._waiting == 0 and self._slot.acquire(blocking=False)
                if free:
                    self._pause = pause
            if not free:
                stop.check()
                time.sleep(_TICK)
                continue
            try:
                started = time.perf_counter()
                return Done(work(progress, _Either(stop, pause)), time.perf_counter() - started)
            except Cancelled:
                if stop.is_set() or not pause.is_set():
                    raise
                news.put(Step(0, 0, "waiting for other work"))
            finally:
                with self._guard:
                    self._pause = None
                self._now = ""
                self._slot.release()


def _follow(news: queue.Queue[Any]) -> Iterator[Step | Done]:
    """The first news at once, then the latest at most every tick; what ends the job is never held back."""
    shown, last = 0.0, None
    item = news.get()
    while True:
        while isinstance(item, Step) and (wait := shown + _TICK - time.perf_counter()) > 0:
            try:
                item = news.get(timeout=wait)
            except queue.Empty:
                break
        if isinstance(item, BaseException):
            raise item
        if item != last:
            yield item
        if isinstance(item, Done):
            return
        shown, last = time.perf_counter(), item
        item = news.get()
