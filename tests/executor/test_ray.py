"""The same promises on a Ray of this machine's own."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest
import small_jobs as jobs

from mergelab.errors import Cancelled, MergeLabError, TaskError
from mergelab.executor import Ray, on_ray
from mergelab.progress import Stop

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def two() -> Iterator[Ray]:
    """Two workers that the tests share; Ray ends with them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with Ray(2, threads=3) as executor:
            yield executor
    assert not ray.is_initialized()


def still_good(executor: Ray) -> bool:
    return sorted(executor.run(jobs.square, [1, 2, 3], names="abc")) == [(0, 1), (1, 4), (2, 9)]


def test_a_cluster_that_does_not_answer_is_named():
    with socket.socket() as free:  # a port that nobody listens at
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(MergeLabError, match=f"Ray at {address} does not answer"):
            Ray(address=address)
    with pytest.raises(MergeLabError, match="Ray at nonsense does not answer"):
        Ray(address="nonsense")


def test_jobs_run_side_by_side_in_other_processes(two, tmp_path):
    x, y = tmp_path / "x", tmp_path / "y"
    got = dict(two.run(jobs.meet, [(x, y), (y, x)], names="xy"))
    assert len({got[0], got[1], os.getpid()}) == 3
    assert list(two.run(jobs.told_threads, [None], names="a")) == [(0, ["3", "3", "3"])]
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_progress_is_of_the_whole_and_never_goes_back(two):
    told: list[tuple[int, int, str]] = []
    got = sorted(two.run(jobs.stepping, [20, 5, 5], names="abc", progress=lambda *news: told.append(news)))
    assert got == [(0, 20), (1, 5), (2, 5)]
    done = [news[0] for news in told]
    assert done == sorted(done)
    assert done[-1] == 3000
    texts = [news[2] for news in told]
    assert any(text.startswith("a: step") for text in texts)
    assert {"a: done", "b: done", "c: done"} <= set(texts)


def test_errors_are_raised_as_they_are_or_name_the_job(two, tmp_path):
    arguments = [(jobs.after, (tmp_path / "began", TaskError("no such split"))), (jobs.until_stopped, tmp_path)]
    with pytest.raises(TaskError, match=r"^no such split$"):
        list(two.run(jobs.each, arguments, names="ab"))
    assert (tmp_path / "stopped").exists()
    with pytest.raises(MergeLabError, match=r"^task a failed with ValueError: wrong$") as caught:
        list(two.run(jobs.raising, [ValueError("wrong\nmore")], names=["task a"]))
    assert "in raising" in str(caught.value.__cause__)
    assert still_good(two)


def test_stop_and_an_early_end_reach_the_jobs(two, tmp_path):
    stop, late = Stop(), tmp_path / "late"
    late.mkdir()
    threading.Thread(target=lambda: (jobs.see(tmp_path / "began"), stop.set())).start()
    with pytest.raises(Cancelled):
        list(two.run(jobs.until_stopped, [tmp_path], names="a", stop=stop))
    assert (tmp_path / "stopped").exists()
    work = two.run(jobs.each, [(jobs.square, 3), (jobs.until_stopped, late)], names="ab")
    assert next(work) == (0, 9)
    jobs.see(late / "began")
    work.close()
    assert (late / "stopped").exists()


def test_a_job_that_does_not_listen_is_ended_by_force(two, monkeypatch, tmp_path):
    monkeypatch.setattr(on_ray, "GRACE", 0.2)
    stop = Stop()
    threading.Thread(target=lambda: (jobs.see(tmp_path / "began"), stop.set())).start()
    with pytest.raises(Cancelled):
        list(two.run(jobs.deaf, [tmp_path], names="a", stop=stop))
    assert still_good(two)


def test_a_job_whose_worker_died_is_run_again_once(two, tmp_path):
    with pytest.raises(MergeLabError, match=r"^The worker of task a died twice \(.*\)\. Use fewer workers or smaller"):
        list(two.run(jobs.dying_noted, [tmp_path / "notes"], names=["task a"]))
    assert (tmp_path / "notes").read_text() == "died\ndied\n"
    assert still_good(two)


def test_ray_runs_as_long_as_someone_uses_it(two, monkeypatch):
    with Ray(2, threads=3) as other:
        assert list(other.run(jobs.square, [2], names="a")) == [(0, 4)]
    with pytest.raises(MergeLabError, match="closed"):
        other.run(jobs.square, [2], names="a")
    monkeypatch.setattr(on_ray, "_users", 0)  # as if the program had started it
    Ray(1).close()
    assert ray.is_initialized()
