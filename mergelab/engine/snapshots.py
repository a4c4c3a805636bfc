"""A merge at several iterations of its solver, from one pass: what the slider over iterations moves through."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import MethodError
from ..progress import Progress, Stop
from .estimate import output_bytes
from .joint import units
from .plan import Plan
from .solve_log import SOLVE_FILE, solve_json
from .stream import Run
from .structure import Item
from .workers import ordered

#: Iterations that are worth looking at: none at all is among them, so that a validated choice is never below its init.
GRID = (0, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100)


@dataclass(frozen=True)
class Snapshots:
    """The merged weights at every iteration of ``grid``, on disk, and what the solver wrote down about every tensor.

    ``folder`` holds one safetensors file per iteration (``iteration-00010.safetensors``) and ``mergelab_solve.json``.
    ``log``: one mapping a merged tensor, in the tensors' order (see :func:`~mergelab.engine.solve_log.solve_document`).
    A temporary folder goes when the object does, or with `close`.
    """

    folder: Path
    grid: tuple[int, ...]
    plan: Plan
    log: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    temporary: bool = False

    def __post_init__(self) -> None:
        if self.temporary:
            weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    def path(self, k: int) -> Path:
        """The file with the weights after ``k`` iterations."""
        if k not in self.grid:
            raise MethodError(f"There is no snapshot after {k!r} iterations; there are {_listed(self.grid)}.")
        return self.folder / file_name(k)

    def state(self, k: int) -> dict[str, Tensor]:
        """The merged state dict after ``k`` iterations; tied names share one tensor. MethodError for another ``k``."""
        from ..checkpoints import load

        with load(self.path(k)) as checkpoint:
            out = {name: checkpoint[name] for name in checkpoint}
        return out | {name: out[target] for name, target in self.plan.aliases.items()}

    def close(self) -> None:
        """Delete the files, where the folder was made for them."""
        if self.temporary:
            shutil.rmtree(self.folder, ignore_errors=True)


def file_name(k: int) -> str:
    return f"iteration-{k:05d}.safetensors"


def merge_snapshots(
    plan: Plan,
    grid: Sequence[int] = GRID,
    folder: str | Path | None = None,
    *,
    device: str | torch.device = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Snapshots:
    """Merge once up to the last iteration of ``grid`` and keep the weights at every ``k`` in it.

    The plan's own ``iterations`` is replaced by ``max(grid)``; ``state(k)`` is bit for bit what a merge with
    ``iterations`` k gives. ``folder`` None: a temporary one, deleted with the result. Raises MethodError for a method
    without ``iterations``, for a grid that is empty or holds what is no whole number from 0; CheckpointError when
    ``folder`` holds something already or the disk is too small; Cancelled after ``stop``, and nothing stays.
    """
    steps = _checked(plan, grid)
    plan = dataclasses.replace(plan, values={**plan.values, "iterations": steps[-1]})
    log: list[Mapping[str, Any]] = []
    with _place(folder, len(steps) * output_bytes(plan)) as (place, final):
        files = _Files(place, plan, steps)
        try:
            run = Run.of(plan, device, threads, progress, stop)

            def work(unit: tuple[Item, ...]) -> list[Mapping[str, Any]]:
                return _unit(run, unit, files)

            for unit, entries in ordered(work, units(plan), run.threads, stop, size=plan.bytes_of):
                log += entries
                for item in unit:
                    run.count.step(item.name)
            files.finish()
        finally:
            files.close()
        (place / SOLVE_FILE).write_text(solve_json(plan, log), encoding="utf-8")
    return Snapshots(final, steps, plan, tuple(log), temporary=folder is None)


def _unit(run: Run, unit: tuple[Item, ...], files: _Files) -> list[Mapping[str, Any]]:
    """Merge what is worked on together and write it into every file; iterations after the last one get the result."""
    entries: list[Mapping[str, Any]] = []
    done: set[int] = set()
    grid = frozenset(files.steps)

    def keep(item: Item, k: int, tensor: Tensor) -> None:
        files.put(k, item.name, tensor)
        done.add(k)

    if len(unit) > 1:
        out = run.joint(*unit, log=entries.append, snapshot=keep, grid=grid)
    else:
        out = [run.item(unit[0], log=entries.append, snapshot=partial(keep, unit[0]), grid=grid)]
    for item, tensor in zip(unit, out, strict=True):
        for k in files.steps:
            if k not in done:
                files.put(k, item.name, tensor)
    return entries


class _Files:
    """One file per iteration, written by all workers at once."""

    def __init__(self, folder: Path, plan: Plan, steps: Sequence[int]) -> None:
        from ..checkpoints.shards import ShardWriter

        self.steps = tuple(steps)
        names = list(plan.outputs)
        self._writers = {
            k: ShardWriter(folder, plan.outputs, {file_name(k): names}, {"format": "pt", **plan.aliases}) for k in steps
        }
        self._locks = {k: threading.Lock() for k in steps}

    def put(self, k: int, name: str, tensor: Tensor) -> None:
        with self._locks[k]:
            self._writers[k].put(name, tensor)

    def finish(self) -> None:
        for writer in self._writers.values():
            writer.require_all()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


def _checked(plan: Plan, grid: Sequence[int]) -> tuple[int, ...]:
    method = plan.method
    if all(parameter.name != "iterations" for parameter in method.parameters):
        raise MethodError(f"Method {method.name!r} has no 'iterations', so there are no snapshots of it; use 'mats'.")
    parameter = method.parameter("iterations")
    steps = sorted({parameter.check(k, f"the snapshots of {method.name!r}") for k in grid})
    if not steps:
        raise MethodError(f"The snapshots' grid is empty; give iterations such as {_listed(GRID[:4])}.")
    return tuple(int(k) for k in steps)


@contextmanager
def _place(folder: str | Path | None, need: int) -> Iterator[tuple[Path, Path]]:
    """(the folder to write into, where it will be); gone after an exception."""
    from ..checkpoints.whole import whole_folder

    if folder is not None:
        out = Path(folder).expanduser().resolve()
        with whole_folder(out, need=need) as partial:
            yield partial, out
        return
    made = Path(tempfile.mkdtemp(prefix="mergelab-snapshots-"))
    try:
        free = shutil.disk_usage(made).free
        if need > free:
            raise MethodError(
                f"The snapshots need {need / 1e9:.3g} GB of disk and {free / 1e9:.3g} GB are free in {made.parent}; "
                "take fewer iterations, or give a folder on another disk."
            )
        yield made, made
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def _listed(grid: Sequence[int]) -> str:
    return ", ".join(map(str, grid))
