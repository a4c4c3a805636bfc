"""What holds for every executor: the choice by name, the job after job of Inline, sizes, and what is not imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import small_jobs as jobs

from mergelab.errors import Cancelled, MergeLabError, TaskError
from mergelab.executor import Inline, Local, Ray, executor_of
from mergelab.executor.executor import shared_cores
from mergelab.executor.on_ray import _share, _shared_cluster
from mergelab.progress import Stop


def test_importing_the_room_brings_neither_torch_nor_ray(root):
    code = "import sys, mergelab.executor; print([m for m in ('torch', 'ray', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_executors_are_chosen_by_name():
    assert isinstance(executor_of("inline", 3, 2), Inline)
    with executor_of("local", 3, 2) as local:
        assert isinstance(local, Local)
        assert (local.workers, local.threads) == (3, 2)


def test_an_unknown_name_is_answered_with_the_closest():
    with pytest.raises(MergeLabError, match=r"no executor 'locale'. Did you mean 'local'?"):
        executor_of("locale")


@pytest.mark.parametrize("workers, threads, named", [(0, None, "workers is 0"), (2, -1, "threads is -1")])
def test_numbers_below_one_are_refused(workers, threads, named):
    with pytest.raises(MergeLabError, match=named):
        executor_of("local", workers, threads)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not say which cores are ours")
def test_workers_share_the_cores_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert shared_cores(None, None) == (8, 1)
    assert shared_cores(3, None) == (3, 2)
    assert shared_cores(16, None) == (16, 1)
    assert shared_cores(None, 4) == (8, 4)


def test_ray_that_is_missing_is_named_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # what `import ray` looks at first
    with pytest.raises(MergeLabError, match=r"Ray is not installed.*pip install 'mergelab\[ray\]'"):
        Ray(2)


def test_a_cluster_is_shared_so_that_every_machine_can_take_a_worker():
    def node(cpu, alive=True):
        return {"Alive": alive, "Resources": {"CPU": cpu} if cpu else {}}

    nodes = [node(16.0), node(8.0), node(64.0, alive=False), node(0)]  # a dead machine, a head without cores
    assert _shared_cluster(nodes, None, None) == (2, 8)
    assert _shared_cluster(nodes, 6, None) == (6, 4)  # 24 cores
    assert _shared_cluster(nodes, 100, None) == (100, 1)
    assert _shared_cluster(nodes, 3, 5) == (3, 5)


def test_accelerators_are_shared_evenly():
    assert _share(0, 4) == 0
    assert _share(8, 4) == 1  # a whole one each; never two
    assert _share(2, 4) == 0.5
    assert _share(2, 3) == 0.5  # a third of two would fit only once on each


def test_inline_does_one_job_after_the_other_in_this_process():
    seen = []
    arguments = [(jobs.stepping, 2), (jobs.square, 5)]
    with Inline() as inline:
        got = list(inline.run(jobs.each, arguments, names=["a", "b"], progress=lambda *told: seen.append(told)))
    assert got == [(0, 2), (1, 25)]
    assert seen == [
        (0, 2000, "a: step 0"),
        (500, 2000, "a: step 1"),
        (500, 2000, "a: again"),
        (1000, 2000, "a: done"),
        (2000, 2000, "b: done"),
    ]


def test_inline_passes_on_what_a_person_may_see_and_names_the_job_of_all_else():
    with pytest.raises(TaskError, match=r"^no such split$"):
        list(Inline().run(jobs.raising, [TaskError("no such split")], names=["a"]))
    with pytest.raises(MergeLabError, match=r"^task a failed with KeyError: 'x'$") as caught:
        list(Inline().run(jobs.raising, [KeyError("x")], names=["task a"]))
    assert isinstance(caught.value.__cause__, KeyError)


def test_inline_stops_between_jobs_and_gives_the_stop_to_jobs(tmp_path):
    stop = Stop()
    work = Inline().run(jobs.square, [1, 2], names="ab", stop=stop)
    assert next(work) == (0, 1)
    stop.set()
    with pytest.raises(Cancelled):
        next(work)
    inside = Inline().run(jobs.raising, [Cancelled("enough")], names="a")
    with pytest.raises(Cancelled, match="enough"):
        next(inside)


def test_every_argument_needs_a_name():
    with pytest.raises(ValueError):
        Inline().run(jobs.square, [1, 2], names="a")
    with Local(1, 1) as local, pytest.raises(ValueError):
        local.run(jobs.square, [1, 2], names="a")
