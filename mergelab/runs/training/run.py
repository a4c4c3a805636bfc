"""A training run from its recipe: rounds through an executor, measured, kept, and gone on with after a kill.

``folder`` holds ``run.json`` (the record), ``rounds/`` (states that the next round starts from) and at the end
``model/``, a checkpoint like any other (``experts/`` where experts were trained). Every file has its name only once it
is whole, so that whatever is there when a run is killed is gone on from: a finished expert of an unfinished round is
not trained again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from ...analysis import geometry
from ...checkpoints import load
from ...engine import pick_device
from ...errors import Cancelled, CheckpointError, MergeLabError
from ...executor import Executor, executor_of
from ...progress import Progress, Stop, report
from ...recipe import Recipe
from ...tasks import Head
from ...training import statefile, work
from ...training.atm import Tuned, check, rounds
from ...training.ground import Ground
from ...training.recipe import TrainRecipe
from ..judges import Judge
from .costs import Meter
from .kept import ALL, Kept
from .record import Record, mean
from .references import data_used, references
from .watch import Seen, Watch
from .write import write_model

#: ``news(record, state)`` at the start and after every round: what is known by then, the current model's tensors.
News = Callable[[Record, Mapping[str, Tensor]], None]


def train(
    recipe: TrainRecipe,
    folder: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    executor: Executor | None = None,
    device: str = "auto",
    keep_rounds: bool = False,
    news: News | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Record:
    """Run a training recipe into ``folder`` and give its record.

    ``resume`` goes on with the run that is there (or starts it); the result is the same bit for bit on a CPU with as
    many threads. ``executor`` (default: in this process) trains a round's experts; it is not closed. ``keep_rounds``
    keeps every round's states in the folder, not only the last.

    Raises CheckpointError for a folder that holds something else, MergeLabError for what cannot be trained or
    diverges, Cancelled after ``stop``: the finished rounds are kept and can be resumed.
    """
    run = _Run(recipe, Path(folder).expanduser().resolve(), str(pick_device(device)), keep_rounds, news, progress, stop)
    run.open(resume, overwrite)
    with ExitStack() as stack:
        run.executor = executor or stack.enter_context(executor_of("inline"))
        try:
            run.go()
        except Cancelled:
            run.ends("stopped")
            raise Cancelled(
                f"Stopped after {len(run.record.rounds)} of {recipe.budget.rounds} rounds, which are kept; resume "
                "goes on from there."
            ) from None
        except MergeLabError as error:
            run.ends("failed", str(error))
            raise
    return run.record


def start_of(
    ground: Ground, kept: Kept, stop: Stop | None = None, progress: Progress | None = None
) -> dict[str, Tensor]:
    """The tensors that training may change as they are before the first round; a merge's are made once, into a file."""
    own, names, path = ground.model.weights.tensors, ground.trained(), kept.start_file
    if path is None:
        return {name: own[name].detach().cpu() for name in names}
    if statefile.about(path) is None:
        report(progress, 0, 1, "merging what the run starts from")
        made = merged_start(ground, stop)
        kept.save_start({n: t.cpu().contiguous() for n, t in made.items() if t.is_floating_point()})
    found = statefile.read(path)
    return {name: found[name] for name in names}


def forgotten(record: Record) -> list[str]:
    """Where tasks joined later: how far each task is below the best it had (its forgetting), in a sentence."""
    if not record.recipe.join or not record.points[-1]["accuracy"]:
        return []
    last = record.points[-1]["accuracy"]
    lost = {task: max(point["accuracy"][task] for point in record.points) - last[task] for task in record.tasks}
    told = ", ".join(f"{record.titles[task]} {100 * value:.1f}" for task, value in lost.items())
    return [f"Forgetting, points below each task's best: {told}. A task that is added means running all rounds on with "
            "every task."]  # fmt: skip


def merged_start(ground: Ground, stop: Stop | None = None) -> Mapping[str, Tensor]:
    """All weights of the merge or checkpoint that a recipe's ``start`` names, as the model spells and holds them."""
    given = ground.recipe.start
    made = Judge(None, None, stop).merged(given) if isinstance(given, Recipe) else load(str(given))
    return ground.model.prepare(made).tensors


class _Run:
    """One run under way."""

    executor: Executor

    def __init__(  # noqa: PLR0917
        self, recipe: TrainRecipe, folder: Path, device: str, keep_rounds: bool, news: News | None,
        progress: Progress | None, stop: Stop | None,
    ) -> None:  # fmt: skip
        self.recipe, self.device, self.keep_rounds = recipe, device, keep_rounds
        self.news, self.progress, self.stop = news, progress, stop
        self.ground = Ground(recipe, device)
        self.kept = Kept(folder, recipe)
        self.meter = Meter()
        wanted = recipe.watch
        self.watch = None if wanted.split == "none" else Watch(self.ground, wanted.split, wanted.limit)
        self.held = Watch(self.ground, "held", None) if recipe.keep == "best" else None
        titles = {task.name: task.title for task in self.ground.tasks}
        self.record = Record(recipe, self.ground.names, titles, data_used=data_used(self.ground))
        if self.watch is not None:
            self.record.watch = {"split": wanted.split, "items": self.watch.items}

    def open(self, resume: bool, overwrite: bool) -> None:
        """Take over the run that is in the folder, or make the folder ready for a new one."""
        folder = self.kept.folder
        if not (resume and folder.is_dir() and any(folder.iterdir())):
            self.kept.make_ready(overwrite)
            return
        found = Record.read(folder)
        if found.recipe.hash != self.recipe.hash:
            raise CheckpointError(
                f"The run in {folder.name} has another recipe (hash {found.recipe.hash[:12]}, not "
                f"{self.recipe.hash[:12]}); resume with its own, or choose another folder."
            )
        if found.watch != self.record.watch:
            raise CheckpointError(
                f"The run in {folder.name} was measured on other items ({found.watch}); resume with the same 'watch'."
            )
        self.record = found
        self.meter = Meter(found.costs)

    def ends(self, status: str, finding: str | None = None) -> None:
        """Say in the record how the run ended."""
        self.record.status = status
        if finding:
            self.record.findings.append(finding)
        self.record.write(self.kept.folder)

    # ---- the rounds --------------------------------------------------------------------------------------------------

    def go(self) -> None:
        if self.record.status == "done":
            return
        self.record.status = "running"
        done, last = len(self.record.rounds), self.recipe.budget.rounds
        base = dict(self.start)
        if not self.record.points:
            if self.watch is not None:
                self.record.references = references(self.ground, self.watch, self.stop)
            self._point(0, base, 0.0)
        else:
            base |= self.kept.state(done)
            self._tell(base)
        for log, state in self._rounds(base, done + 1, last):
            self._ended(log, state)
        self._finish()

    def _rounds(
        self, base: dict[str, Tensor], first: int, last: int
    ) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
        """Each round's log and the tensors of the model after it (none where experts go on apart)."""
        if self.recipe.train == "atm":
            made = rounds(
                base, self._tuned, self.recipe.aggregation, first=first, last=last, seed=self.recipe.seed,
                history=self.record.losses(), stop=self.stop,
            )  # fmt: skip
            for each in made:
                lie = self._geometry(each.number, base, each.logs)
                base = each.base
                log = {"round": each.number, "courses": dict(each.logs), **lie, "seconds": each.seconds}
                yield {**log, "aggregate_seconds": each.aggregate_seconds}, base
            return
        for number in range(first, last + 1):
            started = time.perf_counter()
            logs = {tuned.task: dict(tuned.log) for tuned in self._tuned(number, base)}
            check([*self.record.losses(), {task: log["start_loss"] for task, log in logs.items()}], number)
            apart = self.recipe.train == "experts"
            lie = self._geometry(number, self.start, logs) if apart else {}
            state = {} if apart else statefile.read(self.kept.expert(number, ALL))
            yield {"round": number, "courses": logs, **lie, "seconds": time.perf_counter() - started}, state

    @cached_property
    def start(self) -> dict[str, Tensor]:
        """The tensors that training may change as they are before the first round."""
        return start_of(self.ground, self.kept, self.stop, self.progress)

    def _tuned(self, number: int, base: Mapping[str, Tensor]) -> Iterator[Tuned]:  # noqa: ARG002  (it is in a file)
        """A round's experts, as files, in the tasks' order however they end."""
        told = json.dumps(self.recipe.to_dict(), sort_keys=True)
        courses = self.kept.courses(number, told, self.ground.names, self.device)
        names = [Path(course.out).stem for course in courses]
        total = self.recipe.budget.rounds

        def progress(done: int, of: int, text: str) -> None:
            report(self.progress, (number - 1) * of + done, total * of, f"round {number} of {total}, {text}")

        ended: dict[int, Any] = {}
        results = self.executor.run(work.run, courses, names=names, progress=progress, stop=self.stop)
        for at, name in enumerate(names):
            while at not in ended:
                place, log = next(results)
                ended[place] = log
            yield Tuned(name, load(courses[at].out), ended[at])

    # ---- after a round -----------------------------------------------------------------------------------------------

    def _geometry(self, number: int, base: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Any]:
        """How a round's task vectors lie: cosines, and norms by task."""
        experts = {name: load(self.kept.expert(number, name)) for name in names}
        trained = list(next(iter(experts.values())))
        found = geometry({name: base[name] for name in trained}, experts, stop=self.stop)
        return {"cosines": found.cosine.whole, "norms": dict(zip(experts, found.norms.whole, strict=True))}

    def _ended(self, log: dict[str, Any], state: dict[str, Tensor]) -> None:
        """Keep and measure a round, then let go of what no later round needs."""
        number = log["round"]
        log["from_start"] = (
            sum(float((state[n].double() - self.start[n].double()).square().sum()) for n in state) ** 0.5
        )
        self.kept.save(number, state)
        self.kept.gather_heads(number)
        self.record.rounds.append(log)
        self._point(number, state, log["seconds"])
        if not self.keep_rounds:
            self.kept.let_go(number, self._best())

    def _point(self, number: int, state: Mapping[str, Tensor], seconds: float) -> None:
        """One more point of the curves, and the record on disk."""
        record, heads = self.record, self.kept.heads(number, self.ground.heads)
        seen = self._measured(self.watch, number, state, heads)
        before = record.points[-1]["seconds"] if record.points else 0.0
        items = sum(len(self.ground.lesson(name)) for name in self.ground.names)
        point = {"round": number, "epochs": record.samples / items, "samples": record.samples,
                 "seconds": before + seconds, "accuracy": seen.accuracy, "loss": seen.loss}  # fmt: skip
        if self.held is not None:
            point["held"] = mean(self._measured(self.held, number, state, heads).accuracy)
        record.points.append(point)
        record.costs = self.meter.costs(record, state or self.start)
        record.write(self.kept.folder)
        self._tell(state)

    def _measured(
        self, watch: Watch | None, number: int, state: Mapping[str, Tensor], heads: Mapping[str, Head] | None
    ) -> Seen:
        if watch is None:
            return Seen({}, {})
        if self.recipe.train != "experts" or not number:
            return watch.measure(state, heads, stop=self.stop)
        found = Seen({}, {})
        for name in self.ground.names:  # each expert on its own task
            own = statefile.read(self.kept.expert(number, name))
            seen = watch.measure(own, heads, tasks=(name,), stop=self.stop)
            found.accuracy.update(seen.accuracy)
            found.loss.update(seen.loss)
        return found

    def _tell(self, state: Mapping[str, Tensor]) -> None:
        if self.news is not None:
            self.news(self.record, state)

    def _best(self) -> int:
        """The round that is the result: the last, or the first of the best on held items (0: the start)."""
        points = self.record.points
        if self.held is None:
            return int(points[-1]["round"])
        return int(max(points, key=lambda point: (point["held"], -point["round"]))["round"])

    def _finish(self) -> None:
        """Write the model, or the experts, and say that the run is done."""
        record, kept, number = self.record, self.kept, self._best()
        record.findings += forgotten(record)
        record.chosen, heads = number, self.kept.heads(self._best(), self.ground.heads)
        report(self.progress, 1, 1, "writing the model")
        if self.recipe.train == "experts":
            for name in self.ground.names if number else ():
                state = statefile.read(kept.expert(number, name))
                write_model(self.ground, record, state, heads, kept.folder / "experts" / name, task=name)
        else:
            begun = statefile.read(kept.start_file) if kept.start_file else {}
            write_model(self.ground, record, begun | kept.state(number), heads, kept.folder / "model")
        self.ends("done")
