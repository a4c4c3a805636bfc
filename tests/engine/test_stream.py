"""Streaming: order, progress, stopping, threads, and what is refused on the way."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
import torch
from conftest_engine import state

import mergelab
from mergelab.checkpoints import load
from mergelab.engine import merge_to_memory, pick_device, plan, stream
from mergelab.engine.workers import ordered
from mergelab.errors import Cancelled, MethodError
from mergelab.progress import Stop


def two() -> dict[str, dict[str, torch.Tensor]]:
    return {"ant": state(1, 0.1), "bee": state(2, 0.1)}


def test_names_come_in_order_and_are_counted() -> None:
    seen: list[tuple[int, int, str]] = []
    made = plan("ties", two(), state())
    names = [name for name, _ in stream(made, progress=lambda *step: seen.append(step))]
    assert names == sorted(state())
    total = 5 + 3 * 4  # five tensors; three readings (two digits, one count of signs) of the four that are merged
    assert [done for done, _, _ in seen] == list(range(1, total + 1))
    assert {of for _, of, _ in seen} == {total}
    assert seen[-1][2] == names[-1]
    assert seen[0][2].startswith("surveying")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("after", [1, 6])  # in the survey, and in the merge
def test_a_stop_ends_it_between_two_tensors(threads: int, after: int) -> None:
    stop, seen = Stop(), []

    def progress(done: int, total: int, text: str) -> None:
        seen.append(done)
        if done == after:
            stop.set()

    with pytest.raises(Cancelled):
        merge_to_memory(
            plan("ties", two(), state(), {"zero_sum": "positive"}), threads=threads, progress=progress, stop=stop
        )
    assert seen == list(range(1, after + 1))


def test_threads_of_the_process_are_left_alone() -> None:
    """Evaluation runs beside a merge and must keep its cores: in this thread and in threads to come."""
    before = torch.get_num_threads()
    merge_to_memory(plan("task_arithmetic", two(), state()), threads=3)
    assert torch.get_num_threads() == before
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert found == [before]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_makes_its_own_workers() -> None:
    """A Space's GPU work runs in a fork; waiting for its parent's threads would never end."""
    made = plan("task_arithmetic", two(), state())
    expected = merge_to_memory(made, threads=2)["norm"]
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        os._exit(0 if merge_to_memory(made, threads=2)["norm"].equal(expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_workers_use_one_core_each() -> None:
    assert {count for _, count in ordered(lambda _: torch.get_num_threads(), range(8), 4)} == {1}


def test_ordered_keeps_the_order_and_looks_ahead_a_little() -> None:
    started: list[int] = []

    def work(number: int) -> int:
        started.append(number)
        time.sleep(0.02 * (number % 3 == 0))
        return number * number

    results = ordered(work, range(50), 2)
    assert next(results) == (0, 0)
    assert max(started) <= 5
    assert [square for _, square in results] == [n * n for n in range(1, 50)]


def test_small_results_may_wait_in_larger_numbers_while_one_takes_long() -> None:
    """Bytes that wait are what is limited: 64 MB, or the few that are always ahead."""
    small, large, slow = 2**20, 2**28, threading.Event()

    def started_meanwhile(size: int) -> int:
        started: list[int] = []

        def work(number: int) -> int:
            started.append(number)
            if number == 0:
                slow.wait(5)
            return number

        results = ordered(work, range(300), 2, size=lambda _: size)
        timer = threading.Timer(0.3, slow.set)
        timer.start()
        assert next(results) == (0, 0)
        timer.join()
        slow.clear()
        count = len(started)
        assert [number for number, _ in results] == list(range(1, 300))
        return count

    assert 60 <= started_meanwhile(small) <= 66
    assert started_meanwhile(large) <= 5


def test_an_error_is_raised_in_its_place_and_ends_the_work() -> None:
    started: list[int] = []

    def work(number: int) -> int:
        started.append(number)
        if number == 3:
            raise MethodError("three")
        return number

    found = []
    with pytest.raises(MethodError, match="three"):
        for number, _ in ordered(work, range(100), 2):
            found.append(number)
    assert found == [0, 1, 2]
    assert max(started) < 10


def test_a_reader_that_walks_away_waits_for_nobody() -> None:
    results = ordered(lambda number: number, range(100), 2)
    next(results)
    results.close()  # type: ignore[attr-defined]


def test_an_overflow_names_the_tensor_and_the_cure() -> None:
    base = {"big": torch.tensor([40000.0], dtype=torch.float16)}
    expert = {"big": torch.tensor([60000.0], dtype=torch.float16)}
    with pytest.raises(MethodError, match=r"'big' holds 8e\+04 .*more than float16 .*bfloat16"):
        mergelab.merge("task_arithmetic", [expert, expert], base)
    assert mergelab.merge("task_arithmetic", [expert, expert], base, out_dtype="float32")["big"].tolist() == [80000.0]


def test_a_result_that_is_not_finite_names_the_tensor() -> None:
    base, expert = {"w": torch.tensor([0.0])}, {"w": torch.tensor([3e38])}
    with pytest.raises(MethodError, match=r"infinity .*'w' with 'task_arithmetic'"):
        mergelab.merge("task_arithmetic", [expert, expert], base)
    # a sum that overflows although every value is finite is no reason to refuse
    wide = {"w": torch.full((4,), 3e38)}
    assert mergelab.merge("linear", [wide])["w"].tolist() == wide["w"].tolist()


def test_values_damaged_after_the_first_merge_are_found_in_the_result() -> None:
    expert = state(1, 0.1)
    made = plan("linear", {"ant": load(expert, name="ant")})
    merge_to_memory(made)
    expert["norm"][0] = float("nan")
    with pytest.raises(MethodError, match="'norm'"):
        merge_to_memory(made)


def test_devices() -> None:
    assert pick_device("cpu").type == "cpu"
    assert pick_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(MethodError, match="Did you mean 'cuda'"):
        pick_device("cuba")
    if not torch.cuda.is_available():
        with pytest.raises(MethodError, match="no CUDA device"):
            pick_device("cuda")


def test_float64_is_refused_where_the_device_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(MethodError, match="MPS cannot compute in float64"):
        mergelab.merge("linear", [state(1)], dtype="float64", device="mps")


def test_a_lent_gpu_is_not_used_for_merging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPACES_ZERO_GPU", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto", merging=True).type == "cpu"
    assert pick_device("auto").type == "cuda"
