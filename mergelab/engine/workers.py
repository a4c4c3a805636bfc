"""Threads that each use one core for one tensor, so that a result has the same bits for any number of them."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from ..cores import available
from ..progress import Stop

In = TypeVar("In")
Out = TypeVar("Out")

#: Results that may wait for one that takes longer, where their size is known.
_AHEAD_BYTES = 64 * 2**20

_pools: dict[int, ThreadPoolExecutor] = {}
_lock = threading.Lock()


def _forget_after_fork() -> None:
    """Threads do not survive a fork (a Space's GPU work runs in one): the child makes its own."""
    global _lock  # noqa: PLW0603
    _pools.clear()
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)


def default_threads() -> int:
    """The cores this process may use."""
    return available()


def pool(threads: int) -> ThreadPoolExecutor:
    """``threads`` workers in which torch uses a single core; kept for the next merge.

    ``torch.set_num_threads`` sets the calling thread's number but also the default of threads to come, so it is put
    back at once: evaluation runs in other threads of this process and must keep all cores.
    """
    with _lock:
        if threads not in _pools:
            before = torch.get_num_threads()
            all_up = threading.Barrier(threads + 1)

            def start() -> None:
                torch.get_num_threads()  # a thread's first use of torch takes the default: do it before changing it
                torch.set_num_threads(1)
                all_up.wait()

            executor = ThreadPoolExecutor(threads, thread_name_prefix=f"mergelab-{threads}")
            try:
                for _ in range(threads):
                    executor.submit(start)
                all_up.wait()
            finally:
                torch.set_num_threads(before)
            _pools[threads] = executor
        return _pools[threads]


def ordered(
    work: Callable[[In], Out],
    items: Iterable[In],
    threads: int,
    stop: Stop | None = None,
    *,
    ahead: int = 2,
    size: Callable[[In], int] | None = None,
) -> Iterator[tuple[In, Out]]:
    """``work`` on every item in parallel, results in the items' order, at most ``threads + ahead`` of them ahead.

    With ``size``, the bytes that a result takes, there may be more of them while they are small, so that a large item
    does not leave the other workers without work. The first error is raised in its place; nothing of the rest is
    started after it, after ``stop``, or once the caller ends the iteration.
    """
    executor = pool(threads)
    waiting: deque[tuple[In, Future[Out]]] = deque()
    source, held = iter(items), 0
    try:
        while True:
            while len(waiting) < threads + ahead or (size is not None and held < _AHEAD_BYTES):
                if stop is not None:
                    stop.check()
                try:
                    item = next(source)
                except StopIteration:
                    break
                waiting.append((item, executor.submit(work, item)))
                held += size(item) if size is not None else 0
            if not waiting:
                return
            item, future = waiting.popleft()
            held -= size(item) if size is not None else 0
            result = future.result()
            if stop is not None:
                stop.check()
            yield item, result
    finally:
        for _, future in waiting:
            future.cancel()
        for _, future in waiting:
            if not future.cancelled():
                future.exception()  # wait: no worker may still read a checkpoint that the caller closes
