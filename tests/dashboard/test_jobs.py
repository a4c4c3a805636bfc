"""Jobs: one at a time, stoppable, and background work gives way."""

from __future__ import annotations

import threading
import time

import pytest

from mergelab.dashboard.jobs import Done, Jobs, Step, Superseded
from mergelab.errors import Cancelled, MergeLabError


def steps(count: int, pause: float = 0.01, seen: list | None = None, name: str = ""):
    def work(progress, stop):
        for i in range(count):
            stop.check()
            if seen is not None:
                seen.append(name)
            progress(i, count, f"step {i}")
            time.sleep(pause)
        return count

    return work


def test_progress_then_the_value():
    items = list(Jobs().run("me", steps(5, 0.1)))
    assert isinstance(items[0], Step) and items[0].total == 5
    assert isinstance(items[-1], Done) and items[-1].value == 5
    assert sum(isinstance(item, Done) for item in items) == 1


def test_stop_ends_only_the_visitors_own_work():
    jobs = Jobs()
    running = jobs.run("me", steps(1000))
    next(running)
    assert jobs.stop("someone else") == 0
    assert jobs.stop("me") == 1
    with pytest.raises(Cancelled):
        list(running)


def test_superseded_work_says_so():
    jobs = Jobs()
    running = jobs.run("me", steps(1000))
    next(running)
    jobs.stop("me", superseded=True)
    with pytest.raises(Superseded):
        list(running)


def test_an_error_reaches_the_caller_and_frees_the_slot():
    jobs = Jobs()

    def broken(progress, stop):
        raise MergeLabError("no such tensor")

    with pytest.raises(MergeLabError, match="no such tensor"):
        list(jobs.run("me", broken))
    assert list(jobs.run("me", steps(1)))[-1].value == 1


def test_leaving_stops_the_work():
    jobs, seen = Jobs(), []
    running = jobs.run("me", steps(10_000, 0.005, seen))
    next(running)
    running.close()
    assert list(jobs.run("you", steps(1)))[-1].value == 1, "the slot is free again"
    count = len(seen)
    time.sleep(0.1)
    assert len(seen) == count


def test_two_at_once_run_one_after_the_other():
    jobs, seen = Jobs(), []
    threads = [
        threading.Thread(target=lambda name=name: list(jobs.run(name, steps(5, 0.02, seen, name))))
        for name in ("a", "b")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == seen or sorted(seen, reverse=True) == seen


def test_background_work_gives_way_and_then_finishes():
    jobs, order = Jobs(), []
    ended = threading.Event()

    def refine():
        list(jobs.run("me", steps(20, 0.05, order, "refine"), background=True))
        order.append("refined")
        ended.set()

    threading.Thread(target=refine, daemon=True).start()
    while "refine" not in order:
        time.sleep(0.01)
    assert list(jobs.run("you", steps(3, 0.01, order, "live")))[-1].value == 3
    assert "refined" not in order, "the live answer came first"
    assert ended.wait(20)
    first_live, last_live = order.index("live"), len(order) - 1 - order[::-1].index("live")
    assert "refine" not in order[first_live:last_live], "they never run at once"


def test_background_work_can_be_stopped_while_it_waits():
    jobs = Jobs()
    blocker = jobs.run("you", steps(200, 0.01))
    next(blocker)
    waiting = jobs.run("me", steps(5), background=True)
    threading.Timer(0.2, lambda: jobs.stop("me")).start()
    with pytest.raises(Cancelled):
        list(waiting)
    blocker.close()
