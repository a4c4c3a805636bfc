"""A worker's side of the pipe: one thread does the jobs, another listens for what the parent says meanwhile."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from multiprocessing.connection import Connection

from ..progress import Stop
from .answer import answer
from .wire import GRACE, NEWS_EVERY, SEEN, STOP, pack


def serve(pipe: Connection, threads: int) -> None:
    """Do jobs until the pipe ends: the whole life of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent stops the jobs
    line = _Line(pipe)
    threading.Thread(target=line.listen, daemon=True).start()
    try:
        line.send(pack("ready"))
        while (asked := line.asked.get()) is not None:
            request, stop = asked
            line.send(answer(request, line.progress, stop, threads))
    except OSError:  # the parent is gone
        return


class _Line:
    """The pipe, shared by two threads."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._writing = threading.Lock()
        self._stop = Stop()
        self._unseen = False  # at most one piece of news is under way, so a parent that is busy holds up no job
        self._next = 0.0
        self.asked: queue.SimpleQueue[tuple[bytes, Stop] | None] = queue.SimpleQueue()

    def send(self, message: bytes) -> None:
        with self._writing:
            self._pipe.send_bytes(message)

    def progress(self, done: int, total: int, text: str) -> None:
        with self._writing:
            now = time.monotonic()
            if self._unseen or now < self._next:
                return
            self._unseen, self._next = True, now + NEWS_EVERY
            self._pipe.send_bytes(pack("progress", done, total, text))

    def listen(self) -> None:
        while True:
            try:
                message = self._pipe.recv_bytes()
            except (EOFError, OSError):
                break
            if message == STOP:
                self._stop.set()
            elif message == SEEN:
                self._unseen = False
            else:
                self._stop, self._next = Stop(), 0.0
                self.asked.put((message, self._stop))
        self._stop.set()  # the parent has ended or wants no more: so does this process, if need be in mid-job
        self.asked.put(None)
        time.sleep(GRACE)
        os._exit(1)
