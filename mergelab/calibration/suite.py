"""Statistics of picture models on the tasks of a suite: one expert, or all experts of a zoo."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints import Checkpoint, load
from ..checkpoints.whole import check_target, whole_folder
from ..errors import StatisticsError, TaskError, suggest
from ..models import Model, build
from ..progress import Progress, Stop, report
from ..statistics import TaskStatistics, write
from ..tasks import Head, Suite, Task, heads_for, load_suite, subset_indices
from ..tasks.head import check_head
from .collect import collect_stats
from .cost import Estimate, estimate
from .differing import left_out
from .inputs import Batch

#: Pictures that pass together. Sums do not depend on it.
BATCH = 32
#: Which pictures of a split are taken: classes in turn (a smaller number is part of a larger), or from its start.
ORDERS = ("balanced", "first")


@dataclass(frozen=True)
class Ready:
    """A model with an expert's weights, its task's head, and the pictures to look at."""

    model: Model
    task: Task
    head: Head
    images: Tensor
    labels: Tensor
    spelling: Mapping[str, str]  # the module's tensor names -> the checkpoint's
    header: Mapping[str, Any]

    def batches(self, size: int) -> Iterator[Batch]:
        """The pictures as the module takes them."""
        for start in range(0, len(self.labels), size):
            part = slice(start, start + size)
            yield Batch(self.model.pixels(self.images[part]), self.labels[part])

    def logits(self, module: nn.Module, pixels: Tensor) -> Tensor:
        """Class scores, with gradients."""
        return self.head.logits(self.model.through(module, pixels))

    def own(self, leave: Mapping[str, str]) -> dict[str, str]:
        """What is left out, under the module's names."""
        theirs = self.spelling.get
        return {
            name: leave[t] for name, _ in self.model.module.named_parameters() if (t := theirs(name, name)) in leave
        }


def collect(
    source: str | Path | Checkpoint | Model,
    task: Task,
    head: Head,
    *,
    kinds: Collection[str],
    examples: int = 256,
    split: str = "val",
    order: str = "balanced",
    fisher: str = "empirical",
    seed: int = 0,
    batch: int = BATCH,
    suite: str = "",
    device: str | torch.device = "auto",
    checkpoint: Checkpoint | None = None,
    leave: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
    **options: Any,
) -> TaskStatistics:
    """Statistics of one expert on its task's pictures.

    Args:
        source: the expert (anything :func:`mergelab.load` takes, adapters too: they are dense here), or a Model with
            its weights, which nobody else may use meanwhile; then ``checkpoint`` says whose weights these are.
        head: the task's; scores are its logits of the features.
        examples: at most so many pictures of ``split``: ``balanced``, the classes in turn (a fixed subset, of which a
            smaller one is part; see :func:`mergelab.tasks.subset_indices`), or the ``first`` ones.
        leave: tensors of the checkpoint that need none -> why, as :func:`collect_stats` takes them.
        fisher, seed, options: as :func:`collect_stats` takes them; the seed also draws the subset.

    The names of tensors are the checkpoint's. Weights that pictures do not pass (a text side) are in ``skipped``.
    """
    with _ready(source, task, head, examples, split, order, seed, suite, device, checkpoint) as ready:
        found = collect_stats(
            ready.model.module, ready.batches(batch), ready.logits, kinds=kinds, fisher=fisher, seed=seed,
            max_examples=None, total=len(ready.labels), leave=ready.own(leave or {}), progress=progress, stop=stop,
            **ready.header, **options,
        )  # fmt: skip
        return _renamed(found, ready)


def collect_zoo(
    suite: Suite | str | Path,
    experts: Mapping[str, str | Path | Checkpoint],
    out: str | Path,
    *,
    kinds: Collection[str],
    tasks: Iterable[str] | None = None,
    heads: Mapping[str, Head] | None = None,
    space: str = "weights",
    changed_only: bool = True,
    overwrite: bool = False,
    each: Callable[[TaskStatistics, Path], None] | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
    **options: Any,
) -> Path:
    """Statistics of every expert on its own task: one file a task in the folder ``out``, which appears whole.

    ``experts``: task -> source; ``heads``: by task (default: those beside the suite's experts); ``each(statistics,
    file)`` is called when a task is done; ``options`` as :func:`collect` takes them. ``space="adapter"``: of the
    vectors of (IA)³ experts instead of the weights that they make. Stopping leaves nothing behind.

    ``changed_only``: no statistics of tensors in which all of ``experts`` (chosen or not) have the same values, as a
    merge of them weighs nothing there; ``skipped`` says so. It does nothing in adapter space, or with ``names``.
    """
    found = load_suite(suite)
    check_target(out, overwrite)
    chosen = chosen_tasks(found, experts, tasks)
    heads = heads_of(found, chosen, heads)
    one = _collector(space)
    options |= left_out(experts, space, changed_only, options, stop)
    with whole_folder(out, overwrite=overwrite) as partial:
        for i, task in enumerate(chosen):

            def told(done: int, total: int, text: str, i: int = i) -> None:
                report(progress, i * total + done, len(chosen) * total, text)

            statistics = one(
                experts[task.name], task, heads[task.name], kinds=kinds, suite=found.name, progress=told, stop=stop,
                **options,
            )  # fmt: skip
            path = write(statistics, partial / f"{task.name}.safetensors", stop=stop)
            if each is not None:
                each(statistics, path)
    return Path(out).expanduser().resolve()


def estimate_zoo(
    suite: Suite | str | Path,
    experts: Mapping[str, str | Path | Checkpoint],
    *,
    kinds: Collection[str],
    tasks: Iterable[str] | None = None,
    heads: Mapping[str, Head] | None = None,
    examples: int = 256,
    split: str = "val",
    order: str = "balanced",
    seed: int = 0,
    batch: int = BATCH,
    device: str | torch.device = "auto",
    space: str = "weights",
    changed_only: bool = True,
    **options: Any,
) -> dict[str, Estimate]:
    """What :func:`collect_zoo` would cost, task by task: one batch of each task's is passed and timed."""
    found = load_suite(suite)
    chosen = chosen_tasks(found, experts, tasks)
    heads = heads_of(found, chosen, heads)
    out: dict[str, Estimate] = {}
    leave = left_out(experts, space, changed_only, options).get("leave", {})
    for task in chosen:
        source: Any = experts[task.name]
        head = heads[task.name]
        if _collector(space) is not collect:
            from .vectors import inserted

            made = inserted(source, device)
            source, options["names"] = made.model, list(made.spelling)
        with _ready(source, task, head, examples, split, order, seed, found.name, device, None) as ready:
            out[task.name] = estimate(
                ready.model.module, next(ready.batches(batch)), ready.logits, kinds=kinds, examples=len(ready.labels),
                seed=seed, leave=ready.own(leave), **options,
            )  # fmt: skip
    return out


def _collector(space: str) -> Callable[..., TaskStatistics]:
    """What collects in a space: of the weights, or of adapters' own vectors."""
    if space == "weights":
        return collect
    if space != "adapter":
        raise StatisticsError(f"There is no space {str(space)[:40]!r}.{suggest(str(space), ('weights', 'adapter'))}")
    from .vectors import collect_vectors

    return collect_vectors


def chosen_tasks(suite: Suite, experts: Mapping[str, Any], tasks: Iterable[str] | None) -> tuple[Task, ...]:
    """The suite's tasks that have an expert, or those named; a task without an expert is an error."""
    if tasks is None:
        chosen = tuple(task for task in suite if task.name in experts)
    else:
        chosen = suite.pick(tasks)
        for task in chosen:
            if task.name not in experts:
                raise StatisticsError(f"There is no expert for the task {task.name!r}.{suggest(task.name, experts)}")
    if not chosen:
        raise StatisticsError(
            f"No task of the suite {suite.name} ({', '.join(suite.names)[:200]}) has an expert among "
            f"{', '.join(experts)[:200] or 'none'}."
        )
    return chosen


def heads_of(suite: Suite, tasks: Iterable[Task], heads: Mapping[str, Head] | None) -> dict[str, Head]:
    """A head for each task; an error that names the first without."""
    known = dict(heads_for(suite) if heads is None else heads)
    for task in tasks:
        if task.name not in known:
            raise TaskError(
                f"There is no head for the task {task.name!r}, and without one there are no class scores. Give "
                "heads=, or a suite whose experts have heads."
            )
    return known


@contextmanager
def _ready(  # noqa: PLR0917
    source: str | Path | Checkpoint | Model, task: Task, head: Head, examples: int, split: str, order: str, seed: int,
    suite: str, device: str | torch.device, checkpoint: Checkpoint | None,
) -> Iterator[Ready]:  # fmt: skip
    if order not in ORDERS:
        raise StatisticsError(f"There is no order {str(order)[:40]!r} of pictures.{suggest(str(order), ORDERS)}")
    if examples < 1:
        raise StatisticsError(f"At least one example is needed, and examples is {examples}.")
    with ExitStack() as stack:
        if isinstance(source, Model):
            model = source
            stack.enter_context(model.using(model.weights))
        else:
            checkpoint = load(source) if not isinstance(source, Checkpoint) else source
            model = build(checkpoint, device=device)
        check_head(head, task, model.width, model.name)
        images, labels = task.split(split)
        if not len(labels):
            raise TaskError(f"The split {split} of {task.name} is empty.")
        count = min(examples, len(labels))
        places = torch.arange(count) if order == "first" else subset_indices(task, split, count, seed)
        if checkpoint is None:
            spelling, hashed, name = {}, None, model.name
        else:
            spelling = {own: theirs for theirs, own in model.own_names(list(checkpoint)).items()}
            hashed, name = checkpoint.weights_hash, checkpoint.name
        header = {
            "task": task.name, "name": name, "weights_hash": hashed, "split": split, "suite": suite,
            "meta": {"order": order, "asked": examples, "of": len(labels), "source": _said(source, checkpoint)},
        }  # fmt: skip
        yield Ready(model, task, _moved(head, model.device), images[places], labels[places], spelling, header)


def _moved(head: Head, device: torch.device) -> Head:
    bias, projection = (None if t is None else t.detach().to(device) for t in (head.bias, head.projection))
    return replace(head, weight=head.weight.detach().to(device), bias=bias, projection=projection)


def _said(source: Any, checkpoint: Checkpoint | None) -> str:
    return str(checkpoint.source if checkpoint is not None else getattr(source, "name", source))[:500]


def _renamed(found: TaskStatistics, ready: Ready) -> TaskStatistics:
    """The checkpoint's spelling of tensors, and the reason why a text side is left out."""
    spelling = ready.spelling
    tower = ready.model.image_tower
    skipped = {}
    for name, reason in found.skipped.items():
        outside = tower is not None and not name.startswith(f"{tower}.") and reason in _UNUSED
        skipped[spelling.get(name, name)] = "pictures do not pass it" if outside else reason
    blocks = {}
    for name in found.names:
        block = found.block(name)
        assert block is not None
        blocks[spelling.get(name, name)] = block
    return TaskStatistics(
        found.task, blocks, name=found.name, weights_hash=found.weights_hash, split=found.split,
        examples=found.examples, fisher=found.fisher, seed=found.seed, suite=found.suite, meta=found.meta,
        skipped=skipped,
    )  # fmt: skip


_UNUSED = ("it was never called", "the outputs do not depend on it")
