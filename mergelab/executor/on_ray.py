"""Jobs on the machines of a Ray cluster, or on a Ray of this machine's own. An optional extra: ``mergelab[ray]``."""

from __future__ import annotations

import itertools
import logging
import math
import os
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

from ..errors import MergeLabError
from ..progress import Progress, Stop
from .answer import answer, ask, in_a_line, opened
from .executor import Executor, Job, at_least_one, shared_cores
from .ledger import Ledger
from .wire import GRACE, NEWS_EVERY

_LOCAL = "local"  # Ray's own word for: start one here, do not look for another
_Told: TypeAlias = tuple[int, int, str]  # done, total, text
_users = 0  # executors that share the Ray that was started here
_lock = threading.Lock()


class Ray(Executor):
    """``workers`` tasks at a time with ``threads`` threads each, started at once (seconds).

    ``address`` is a cluster's ("auto", "host:port"; default: what ``RAY_ADDRESS`` says); MergeLab must be installed on
    all its machines, and the defaults are a worker for every machine with all cores of the smallest. Without one, Ray
    is started on this machine and the cores are shared as by :class:`~mergelab.executor.Local`. A Ray that the program
    has started itself is used as it is and left running. Accelerators are shared evenly by the workers.

    Raises :class:`MergeLabError` where Ray is not installed or the cluster does not answer.
    """

    def __init__(self, workers: int | None = None, threads: int | None = None, address: str | None = None) -> None:
        self._ray = _import_ray()
        address = address or os.environ.get("RAY_ADDRESS") or _LOCAL
        self.workers, self.threads = 1, 1
        if address == _LOCAL:
            self.workers, self.threads = shared_cores(workers, threads)
        else:
            at_least_one(workers, threads)
        self._ours = _join(self._ray, address, self.workers)
        if address != _LOCAL:
            self.workers, self.threads = _shared_cluster(self._ray.nodes(), workers, threads)
        self._closed = False
        self._runs = itertools.count()
        self._board: Any = None  # of all runs, for it is a process that takes seconds to start
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        variables = {"OMP_WAIT_POLICY": "PASSIVE", **dict.fromkeys(names, str(self.threads))}
        if self._ours and address == _LOCAL:  # jobs are found where this process finds them
            variables["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self._options = {
            "max_retries": 0,
            "num_cpus": 1 if address == _LOCAL else self.threads,
            "num_gpus": _share(self._ray.cluster_resources().get("GPU", 0), self.workers),
            "runtime_env": {"env_vars": variables},
        }

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
        ray = self._ray
        died = (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError)
        do = ray.remote(_do).options(**self._options)
        if self._board is None:
            self._board = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Board).remote()
        board, run = self._board, next(self._runs)
        at_work: dict[Any, int] = {}  # a task -> its job's place
        try:
            while True:
                while len(at_work) < self.workers and (place := ledger.next()) is not None:
                    request = ask(job, *ledger.jobs[place], dumps=ray.cloudpickle.dumps)
                    at_work[do.remote(request, board, (run, place), self.threads)] = place
                yield from ledger.results()  # after the next jobs have begun: the caller may take its time
                if not at_work:
                    return
                stop.check()
                for place, told in ray.get(board.look.remote(run)).items():
                    if place in at_work.values():
                        ledger.whole.told(place, *told)
                for task in ray.wait(list(at_work), num_returns=1, timeout=NEWS_EVERY)[0]:
                    place = at_work.pop(task)
                    try:
                        ledger.answered(place, opened(ray.get(task)))
                    except died as error:
                        ledger.lost(place, type(error).__name__, "Use fewer workers or smaller batches.")
        except ray.exceptions.RayError as error:
            raise MergeLabError(f"Ray cannot go on ({in_a_line(getattr(error, 'cause', None) or error)}).") from error
        finally:
            self._halt(run, list(at_work))

    def _halt(self, run: int, tasks: list[Any]) -> None:
        """Stop the tasks under way, by force if they do not listen."""
        ray = self._ray
        if self._closed:  # before the iteration was
            return
        with suppress(ray.exceptions.RayError):  # a board that is lost: tasks that cannot reach it stop
            ray.get(self._board.stop.remote(run), timeout=GRACE)
        if tasks:
            _, deaf = ray.wait(tasks, num_returns=len(tasks), timeout=GRACE)
            for task in deaf:
                ray.cancel(task, force=True)

    def close(self) -> None:
        """Give Ray up; it ends with the last executor that uses it, unless the program started it."""
        if self._closed:
            return
        self._closed = True
        if self._board is not None:
            self._ray.kill(self._board)
        if self._ours:
            _leave(self._ray)


class _Board:
    """Where tasks write how far they are, and read whether to stop: an actor."""

    def __init__(self) -> None:
        self._told: dict[int, dict[int, _Told]] = {}
        self._stopped: set[int] = set()

    def tell(self, run: int, place: int, told: _Told | None) -> bool:
        """A job's news, if there is any; whether its run was stopped."""
        if run in self._stopped:
            return True
        if told is not None:
            self._told.setdefault(run, {})[place] = told
        return False

    def look(self, run: int) -> dict[int, _Told]:
        """What a run's jobs told since the last look."""
        return self._told.pop(run, {})

    def stop(self, run: int) -> None:
        self._stopped.add(run)
        self._told.pop(run, None)


def _do(request: bytes, board: Any, run_and_place: tuple[int, int], threads: int) -> bytes:
    """A task: the answer to a request, while a thread talks to the board."""
    ray = _import_ray()
    stop, over = Stop(), threading.Event()
    latest: _Told | None = None

    def progress(done: int, total: int, text: str) -> None:
        nonlocal latest
        latest = (done, total, text)

    def talk() -> None:
        told = None
        while not over.wait(NEWS_EVERY):
            now = latest
            news, told = (None if now is told else now), now
            try:
                if ray.get(board.tell.remote(*run_and_place, news)):
                    stop.set()
            except ray.exceptions.RayError:  # nobody waits for the answer any more
                stop.set()
                return

    talking = threading.Thread(target=talk, daemon=True)
    talking.start()
    try:
        return answer(request, progress, stop, threads)
    finally:
        over.set()
        talking.join()


def _import_ray() -> Any:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
    except ImportError as error:
        raise MergeLabError("Ray is not installed. Install it with: pip install 'mergelab[ray]'") from error
    return ray


def _join(ray: Any, address: str, workers: int) -> bool:
    """Start or reach Ray unless it is there; whether it is ours to end."""
    global _users  # noqa: PLW0603
    with _lock:
        if _users == 0:
            if ray.is_initialized():
                return False
            here = {"num_cpus": workers, "include_dashboard": False} if address == _LOCAL else {}
            try:
                _knock(address)
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **here)
            except Exception as error:
                raise MergeLabError(f"Ray at {address} does not answer ({in_a_line(error)}).") from error
        _users += 1
        return True


def _knock(address: str) -> None:
    """Raise an OSError if nobody listens at "host:port": Ray itself would go on trying for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=GRACE).close()


def _leave(ray: Any) -> None:
    global _users  # noqa: PLW0603
    with _lock:
        _users -= 1
        if _users == 0:
            ray.shutdown()


def _shared_cluster(nodes: list[dict[str, Any]], workers: int | None, threads: int | None) -> tuple[int, int]:
    """(workers, threads of each) that share a cluster's cores, as far as they are not given.

    No worker is given more threads than the smallest machine has cores, so that every machine can take one.
    """
    cores = [int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"]]
    cores = [number for number in cores if number] or [1]
    workers = workers or len(cores)
    return workers, threads or max(1, min(*cores, sum(cores) // workers))


def _share(accelerators: float, workers: int) -> float:
    """What a task asks for, so that ``workers`` of them find room: a whole accelerator or an even part of one."""
    return 1 / math.ceil(workers / accelerators) if accelerators else 0
