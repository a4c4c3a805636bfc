"""Processes of this machine that stay alive between two runs, for importing torch takes seconds."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.machinery import ModuleSpec
from multiprocessing import get_context
from multiprocessing.connection import wait
from typing import Any

from ..errors import MergeLabError
from ..progress import Progress, Stop
from .answer import ask, opened
from .child import serve
from .executor import Executor, Job, shared_cores
from .ledger import Ledger
from .wire import GRACE, SEEN, STOP

_SPAWN = get_context("spawn")  # a fork would copy locks that other threads hold, and an accelerator's state
_TICK = 0.1  # seconds between two looks at the stop
_MAIN = b"__main__"
_starting = threading.Lock()  # held while this process's environment is a worker's


class Local(Executor):
    """``workers`` processes with ``threads`` threads each (default: all cores, shared evenly).

    May be used from any thread; runs at the same time have ``workers`` processes each. A worker imports the program's
    main file only if a job or its argument was defined there; such a script keeps its work under
    ``if __name__ == "__main__":``, as always with multiprocessing. Workers end with this process, however it ends.
    """

    def __init__(self, workers: int | None = None, threads: int | None = None) -> None:
        self.workers, self.threads = shared_cores(workers, threads)
        self._idle: list[_Worker] = []
        self._lock = threading.Lock()
        self._closed = False

    def run(
        self,
        job: Job,
        arguments: Sequence[Any],
        *,
        names: Sequence[str],
        progress: Progress | None = None,
        stop: Stop | None = None,
    ) -> Iterator[tuple[int, Any]]:
        if self._closed:
            raise MergeLabError("This executor is closed. Make a new one.")
        return self._run(job, Ledger(arguments, names, progress), stop or Stop())

    def _run(self, job: Job, ledger: Ledger, stop: Stop) -> Iterator[tuple[int, Any]]:
        at_work: list[_Worker] = []
        try:
            while True:
                while len(at_work) < self.workers and (place := ledger.next()) is not None:
                    at_work.append(self._hire(place, ask(job, *ledger.jobs[place])))
                yield from ledger.results()  # after the next jobs have begun: the caller may take its time
                if not at_work:
                    return
                stop.check()
                for worker in _with_news(at_work):
                    news = worker.read()
                    if news is None:
                        at_work.remove(worker)
                        ledger.lost(worker.place, *worker.obituary())
                    elif news[0] == "progress":
                        ledger.whole.told(worker.place, *news[1:])
                    elif news[0] != "ready":
                        at_work.remove(worker)
                        self._rest(worker)
                        ledger.answered(worker.place, news)
        finally:
            self._halt(at_work)

    def _hire(self, place: int, request: bytes) -> _Worker:
        """A worker that is given the job: one that waits, or a new one."""
        main = _MAIN in request
        with self._lock:
            fit = next((w for w in self._idle if (w.main or not main) and w.process.is_alive()), None)
            if fit is not None:
                self._idle.remove(fit)
        worker = fit or _Worker(self.threads, main)
        worker.give(place, request)
        return worker

    def _rest(self, worker: _Worker) -> None:
        """Keep a worker that has nothing to do for the next job, if there are not enough."""
        with self._lock:
            self._idle = [w for w in self._idle if w.process.is_alive()]
            full = self._closed or len(self._idle) >= self.workers
            if not full:
                self._idle.append(worker)
        if full:
            worker.pipe.close()

    def _halt(self, at_work: list[_Worker]) -> None:
        """Stop the jobs under way, and end the workers that do not listen."""
        for worker in [w for w in at_work if w.stop()]:
            at_work.remove(worker)
            self._rest(worker)
        until = time.monotonic() + GRACE
        while at_work and time.monotonic() < until:
            for worker in _with_news(at_work):
                news = worker.read()
                if news is None or news[0] != "progress":
                    at_work.remove(worker)
                if news is not None and news[0] != "progress":
                    self._rest(worker)
        for worker in at_work:
            worker.end()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.pipe.close()  # which it takes as the end
        for worker in idle:
            worker.end(GRACE)


class _Worker:
    """A process that does one job at a time, seen from the parent."""

    def __init__(self, threads: int, main: bool) -> None:
        self.main = main  # it knows what the program's main file defines
        self.place = 0
        self._ready = False
        self._request: bytes | None = None  # a job that waits until the process is up, so that several start at once
        self.pipe, theirs = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=serve, args=(theirs, threads), name="mergelab-worker", daemon=True)
        try:
            with _environment(threads, main):
                self.process.start()
        except OSError as error:
            raise MergeLabError(f"A worker process cannot be started ({error}). Use fewer workers.") from error
        finally:
            theirs.close()

    def give(self, place: int, request: bytes) -> None:
        self.place = place
        if self._ready:
            self._tell(request)
        else:
            self._request = request

    def stop(self) -> bool:
        """Ask for the end of the job; whether there is nothing to wait for, since it had not begun."""
        if self._request is not None:
            self._request = None
            return True
        self._tell(STOP)
        return False

    def read(self) -> tuple[Any, ...] | None:
        """What the worker says; None: it is dead."""
        try:
            message = opened(self.pipe.recv_bytes())
        except (EOFError, OSError):
            self.end(GRACE)
            return None
        if message[0] == "progress":
            self._tell(SEEN)
        elif message[0] == "ready":
            self._ready = True
            if self._request is not None:
                request, self._request = self._request, None
                self._tell(request)
        return message

    def _tell(self, message: bytes) -> None:
        with suppress(OSError):  # it died: reading says so
            self.pipe.send_bytes(message)

    def end(self, wait_seconds: float = 0.0) -> None:
        """End the process, by force if it has not ended by itself within ``wait_seconds``."""
        self.pipe.close()
        self.process.join(wait_seconds)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join(1.0)
        if self.process.is_alive():
            self.process.kill()
            self.process.join(1.0)

    def obituary(self) -> tuple[str, str]:
        """How it died, and what to do about it."""
        how = _how(self.process.exitcode)
        if self._ready:
            return how, "Use fewer workers or smaller batches."
        advice = 'Keep the work of a script under `if __name__ == "__main__":`.' if self.main else "Use fewer workers."
        return f"{how}, while it started", advice


def _with_news(workers: list[_Worker]) -> list[_Worker]:
    """Those that said something within a tick."""
    pipes = wait([worker.pipe for worker in workers], _TICK)
    return [worker for worker in workers if worker.pipe in pipes]


def _how(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"killed by {name}" + (", often for lack of memory" if name == "SIGKILL" else "")


@contextmanager
def _environment(threads: int, main: bool) -> Iterator[None]:
    """This process's environment as a worker is to find it, before anything is imported there.

    A new process imports the program's main file first. Unless it needs it (``main``) it is told that this is
    MergeLab's own, which does nothing: the one of a Space would build a second dashboard.
    """
    wanted = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    wanted["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")  # as in cores.share_cores
    module = sys.modules["__main__"]
    with _starting:
        before, spec = {name: os.environ.get(name) for name in wanted}, module.__spec__
        os.environ.update(wanted)
        if not main:
            module.__spec__ = ModuleSpec("mergelab.__main__", None)
        try:
            yield
        finally:
            module.__spec__ = spec
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
