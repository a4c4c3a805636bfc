"""Local workers: results, progress, errors, stops, deaths, and processes that are used again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import small_jobs as jobs

from mergelab.errors import Cancelled, MergeLabError, RecipeError, TaskError
from mergelab.executor import Local
from mergelab.executor import local as module
from mergelab.progress import Stop

NAMES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def two() -> Iterator[Local]:
    """Two workers that the tests share: each test leaves them usable."""
    with Local(2, threads=3) as local:
        yield local


def pids(local: Local, folder: Path) -> list[int]:
    """The ids of the processes of two jobs that run at the same time."""
    folder.mkdir()
    x, y = folder / "x", folder / "y"
    return [pid for _, pid in sorted(local.run(jobs.meet, [(x, y), (y, x)], names="xy"))]


def still_good(local: Local) -> bool:
    return sorted(local.run(jobs.square, [1, 2, 3], names=NAMES)) == [(0, 1), (1, 4), (2, 9)]


def gone(pid: int) -> bool:
    """Whether a process ends within a minute."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


def test_results_come_with_their_place_whatever_the_order(two):
    assert sorted(two.run(jobs.square, range(7), names=[str(i) for i in range(7)])) == [(i, i * i) for i in range(7)]
    assert list(two.run(jobs.square, [], names=[])) == []


def test_jobs_run_side_by_side_in_processes_that_the_next_run_uses_again(two, tmp_path):
    first, second = pids(two, tmp_path / "first"), pids(two, tmp_path / "second")
    assert len({*first, os.getpid()}) == 3
    assert sorted(first) == sorted(second)


def test_progress_is_of_the_whole_and_never_goes_back(two):
    told: list[tuple[int, int, str]] = []
    list(two.run(jobs.stepping, [10, 5, 10], names=NAMES, progress=lambda *news: told.append(news)))
    done = [news[0] for news in told]
    assert done == sorted(done)
    assert done[-1] == 3000
    assert {news[1] for news in told} == {3000}
    texts = [news[2] for news in told]
    assert all(f"{name}: step 0" in texts and f"{name}: done" in texts for name in NAMES)


def test_threads_are_told_to_the_worker_and_not_left_in_this_process(two):
    before = dict(os.environ)
    assert list(two.run(jobs.told_threads, [None], names=["a"])) == [(0, ["3", "3", "3"])]
    assert dict(os.environ) == before


def test_torch_uses_the_threads_and_its_tensors_outlive_the_worker():
    torch = pytest.importorskip("torch")
    with Local(1, threads=2) as local:
        [(_, (threads, tensor))] = local.run(jobs.torch_threads, [None], names=["a"])
    assert threads == 2
    assert torch.equal(tensor, torch.tensor([0.0, 1, 2, 3, 4, 5]))


@pytest.mark.parametrize("kind", [MergeLabError, TaskError, RecipeError, Cancelled])
def test_an_error_for_a_person_is_raised_as_it_is(two, kind):
    with pytest.raises(MergeLabError, match=r"^`rate` is -1; it must be positive.$") as caught:
        list(two.run(jobs.raising, [kind("`rate` is -1; it must be positive.")], names=["a"]))
    assert type(caught.value) is kind
    assert still_good(two)


def test_an_error_that_is_not_made_from_its_message_keeps_the_message(two):
    with pytest.raises(MergeLabError, match=r"^take 7$"):
        list(two.run(jobs.refusing, ["take"], names=["a"]))


def test_any_other_error_names_the_job_and_brings_its_traceback(two):
    with pytest.raises(MergeLabError) as caught:
        list(two.run(jobs.raising, [ValueError("wrong shape\nsecond line")], names=["task mnist"]))
    assert type(caught.value) is MergeLabError
    assert str(caught.value) == "task mnist failed with ValueError: wrong shape"
    assert "in raising" in str(caught.value.__cause__)
    with pytest.raises(MergeLabError, match="task mnist failed with SystemExit: 3"):
        list(two.run(jobs.raising, [SystemExit(3)], names=["task mnist"]))
    assert still_good(two)


def test_what_cannot_travel_is_said(two):
    with pytest.raises(MergeLabError, match="task a cannot be sent to a worker"):
        list(two.run(jobs.raising, [threading.Lock()], names=["task a"]))
    with pytest.raises(MergeLabError, match="task a failed with"):
        list(two.run(jobs.unpicklable, [None], names=["task a"]))
    assert still_good(two)


def test_results_that_came_are_kept_and_other_jobs_are_stopped_before_an_error_is_raised(two, tmp_path):
    arguments = [
        (jobs.square, 3),
        (jobs.after, (tmp_path / "began", TaskError("no such split"))),
        (jobs.until_stopped, tmp_path),
    ]
    work = two.run(jobs.each, arguments, names=NAMES)
    assert next(work) == (0, 9)
    with pytest.raises(TaskError, match="no such split"):
        next(work)
    assert (tmp_path / "stopped").exists()
    assert still_good(two)


def test_no_job_begins_after_an_error(tmp_path):
    arguments = [(jobs.raising, TaskError("no")), (jobs.meet, (tmp_path / "ran", tmp_path))]
    with Local(1, 1) as local, pytest.raises(TaskError):
        list(local.run(jobs.each, arguments, names="ab"))
    assert not (tmp_path / "ran").exists()


def test_stop_reaches_the_jobs_and_spares_the_workers(two, tmp_path):
    stop, before = Stop(), pids(two, tmp_path / "before")
    threading.Thread(target=lambda: (jobs.see(tmp_path / "began"), stop.set())).start()
    with pytest.raises(Cancelled):
        list(two.run(jobs.until_stopped, [tmp_path], names=["a"], stop=stop))
    assert (tmp_path / "stopped").exists()
    assert sorted(pids(two, tmp_path / "after")) == sorted(before)


def test_a_job_that_does_not_listen_is_ended_by_force(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "GRACE", 0.2)
    stop = Stop()
    threading.Thread(target=lambda: (jobs.see(tmp_path / "began"), stop.set())).start()
    with Local(1, 1) as local:
        with pytest.raises(Cancelled):
            list(local.run(jobs.deaf, [tmp_path], names=["a"], stop=stop))
        assert gone(int((tmp_path / "began").read_text()))
        assert still_good(local)


def test_ending_the_iteration_early_stops_the_jobs(two, tmp_path):
    work: Any = two.run(jobs.each, [(jobs.square, 3), (jobs.until_stopped, tmp_path)], names="ab")
    assert next(work) == (0, 9)
    jobs.see(tmp_path / "began")
    work.close()
    assert (tmp_path / "stopped").exists()
    assert still_good(two)


def test_an_error_of_the_progress_stops_the_jobs(two, tmp_path):
    def progress(done: int, total: int, text: str) -> None:
        jobs.see(tmp_path / "began")
        raise RuntimeError("the page is gone")

    with pytest.raises(RuntimeError, match="the page is gone"):
        arguments = [(jobs.stepping, 3), (jobs.until_stopped, tmp_path)]
        list(two.run(jobs.each, arguments, names="ab", progress=progress))
    assert (tmp_path / "stopped").exists()
    assert still_good(two)


def test_a_job_whose_worker_died_is_run_again(two, tmp_path):
    arguments = [(jobs.dying_once, tmp_path / "died"), (jobs.square, 2), (jobs.square, 3)]
    assert sorted(two.run(jobs.each, arguments, names=NAMES)) == [(0, "second try"), (1, 4), (2, 9)]


@pytest.mark.parametrize(
    "job, argument, how",
    [
        (jobs.dying, None, "killed by SIGKILL, often for lack of memory"),
        (jobs.exiting, 4, "exit code 4"),
    ],
)
def test_a_job_whose_workers_die_is_named_with_how(job, argument, how):
    with Local(1, 1) as local:
        with pytest.raises(MergeLabError) as caught:
            list(local.run(job, [argument], names=["task mnist"]))
        sentence = f"The worker of task mnist died twice ({how}). Use fewer workers or smaller batches."
        assert str(caught.value) == sentence
        assert still_good(local)


def test_a_worker_that_died_between_two_runs_is_replaced(two, tmp_path):
    before = pids(two, tmp_path / "before")
    os.kill(before[0], signal.SIGKILL)
    assert still_good(two)
    after = pids(two, tmp_path / "after")
    assert before[0] not in after
    assert before[1] in after


def test_two_executors_in_two_threads(tmp_path):
    got: dict[int, list[tuple[int, Any]]] = {}

    def work(me: int, meeting: tuple[Path, Path]) -> None:
        with Local(1, threads=me) as local:
            arguments = [(jobs.meet, meeting), (jobs.told_threads, None), (jobs.square, me)]
            got[me] = list(local.run(jobs.each, arguments, names=NAMES))

    x, y = tmp_path / "x", tmp_path / "y"
    threads = [threading.Thread(target=work, args=pair) for pair in ((4, (x, y)), (5, (y, x)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got[4][1:] == [(1, ["4", "4", "4"]), (2, 16)]
    assert got[5][1:] == [(1, ["5", "5", "5"]), (2, 25)]
    assert got[4][0] != got[5][0]


def test_two_runs_of_one_executor_at_the_same_time(two, tmp_path):
    x, y = tmp_path / "x", tmp_path / "y"
    slow = two.run(jobs.each, [(jobs.square, 2), (jobs.meet, (x, y))], names="ab")
    assert next(slow) == (0, 4)
    assert len(list(two.run(jobs.meet, [(y, x)], names="a"))) == 1
    assert len(list(slow)) == 1


def test_closing_ends_the_workers_and_says_so(tmp_path):
    local = Local(2, 1)
    workers = pids(local, tmp_path / "pids")
    local.close()
    assert all(gone(pid) for pid in workers)
    with pytest.raises(MergeLabError, match="closed"):
        local.run(jobs.square, [1], names="a")


SCRIPT = """
import os, sys
from pathlib import Path
sys.path.insert(0, {here!r})
import small_jobs
from mergelab.errors import MergeLabError
from mergelab.executor import Local
print("imported", __name__, flush=True)
def own(argument, progress, stop):
    return argument + 1
"""


def script(folder: Path, root: Path, text: str) -> subprocess.Popen[str]:
    """Start a program whose main file is ``text`` after :data:`SCRIPT`."""
    file = folder / "program.py"
    file.write_text(SCRIPT.format(here=str(Path(__file__).parent)) + text)
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.Popen(
        [sys.executable, str(file)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_workers_main_file_is_imported_only_for_what_it_defines(root, tmp_path):
    text = """
if __name__ == "__main__":
    with Local(1, 1) as local:
        print(list(local.run(small_jobs.square, [3], names="a")), flush=True)
        print(list(local.run(own, [3], names="a")), flush=True)
"""
    out, _ = script(tmp_path, root, text).communicate(timeout=120)
    assert out.splitlines() == ["imported __main__", "[(0, 9)]", "imported __mp_main__", "[(0, 4)]"]


def test_a_main_file_that_cannot_be_imported_is_explained(root, tmp_path):
    text = """
with Local(1, 1) as local:
    try:
        list(local.run(own, [3], names=["task a"]))
    except MergeLabError as error:
        print(error)
"""
    out, _ = script(tmp_path, root, text).communicate(timeout=120)
    assert "The worker of task a died twice (exit code 1, while it started)." in out
    assert 'if __name__ == "__main__":' in out


def test_workers_end_when_this_process_is_killed(root, tmp_path):
    text = f"""
with Local(1, 1) as local:
    list(local.run(small_jobs.until_stopped, [Path({str(tmp_path)!r})], names="a"))
"""
    program = script(tmp_path, root, text)
    jobs.see(tmp_path / "began")
    program.kill()
    jobs.see(tmp_path / "stopped")
    program.communicate(timeout=60)  # its output ends when the last process that holds it has ended
