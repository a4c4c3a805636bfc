"""AdaMerging: learn how much of each task vector goes into each tensor, by entropy on unlabelled inputs.

Yang et al. 2023 (arXiv 2310.02575): minimise Σ_t w_t · mean over x of H(softmax(head_t(f_θ(x)))) over the coefficients
of θ^l = θ0^l + Σ_t λ_t^l τ_t^l, with Adam (0.9, 0.999) and no weight decay; heads and task vectors stay as they are.

Two differences from the authors' code, both named where results are shown: coefficients are put back into [0, 1]
*after* a step (theirs are clamped in the forward pass, which leaves those outside without a gradient for good), and the
inputs are the validation split unless the test split is asked for. Several mini-batches in a step are averaged where
theirs are added, which Adam does not notice.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from ..engine import Plan
from ..engine.adapters import ADAPTER
from ..errors import MergeLabError, MethodError
from ..models import Model
from ..progress import Progress, Stop, report
from ..tasks import Head
from .blend import Blend
from .inputs import Draws, Unlabelled, data_used
from .learned import Learned
from .split import vectors_of

#: About so many records of the coefficients are kept of a run, besides the first and the last.
RECORDS = 50
#: A task whose predictions were spread and end on one class to this share has collapsed.
COLLAPSED = 0.9
ALL = "all tensors"
#: Mini-batches of several tasks pass the model together while they have at most so many pixels (148 pictures of 42 px,
#: five of 224 px): small pictures take a third less time so, large ones would only take more memory.
CHUNK_PIXELS = 1 << 18


@dataclass(frozen=True)
class Settings:
    """How to learn; the fields are the method's parameters."""

    per: str = "layer"
    steps: int = 100
    rate: float = 0.01
    batch: int = 16
    batches: int = 1
    start: float = 0.3
    clamp: str = "project"
    seed: int = 0

    @classmethod
    def of(cls, plan: Plan) -> Settings:
        """The settings that a plan's parameters say."""
        names = ("per", "steps", "rate", "batch", "batches", "start", "clamp")
        return cls(**{name: plan.values[name] for name in names}, seed=plan.seed)


@dataclass(frozen=True)
class _Task:
    """One task while it is learned from."""

    inputs: Unlabelled
    head: Head
    weight: float
    draws: Draws


def learn(
    model: Model,
    plan: Plan,
    inputs: Sequence[Unlabelled],
    settings: Settings | None = None,
    *,
    keep: str = "auto",
    suite: str = "",
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Learned:
    """Learn the coefficients of ``plan`` (of the method ``adamerging``) on unlabelled ``inputs``, one set a model.

    ``model`` is built from the plan's base and left as it is. ``keep``: how task vectors are held (see
    :class:`~mergelab.training.blend.Blend`). The same seed gives the same coefficients on the same machine.

    Raises MethodError when inputs and models do not match, MergeLabError when the loss is not finite any more, and
    Cancelled between two batches after ``stop``. Activations are kept for one mini-batch (or a few small ones, see
    `CHUNK_PIXELS`) at a time, whatever the number of experts.
    """
    started = time.perf_counter()
    if plan.space == ADAPTER:
        raise MethodError(
            f"Method {plan.method.name!r} learns coefficients of weights, but the recipe merges adapters' own vectors; "
            "leave 'space' out."
        )
    settings = settings or Settings.of(plan)
    tasks = _tasks(plan, inputs, settings, model.device)
    blend = Blend(model, plan, vectors_of(plan, model.device, stop), keep=keep, progress=progress, stop=stop)
    trace = _Trace(settings.steps)
    rows = len(blend.names) if settings.per == "layer" else 1
    table = torch.full((rows, len(plan.names)), float(settings.start), requires_grad=True)
    optimiser = torch.optim.Adam([table], lr=settings.rate, betas=(0.9, 0.999))
    trace.record(0, table)
    groups = _groups(tasks, settings, model.resolution)
    for step in range(settings.steps):
        blend.apply(table.detach().expand(len(blend.names), -1))
        for index, group in enumerate(groups):
            if stop is not None:
                stop.check()
            _look(blend, group, settings, trace, step)
            report(progress, step * len(groups) + index + 1, settings.steps * len(groups), trace.text(step))
        slopes = _finite(blend.slopes(), step, settings)
        table.grad = slopes if settings.per == "layer" else slopes.sum(0, keepdim=True)
        optimiser.step()
        if settings.clamp == "project":
            with torch.no_grad():
                table.clamp_(0.0, 1.0)
        trace.record(step + 1, table)
    used, transductive = _data(tasks)
    said = ["The inputs were the test pictures themselves: the result is transductive."] if transductive else []
    names = [task.inputs.task for task in tasks]
    return Learned(
        models=tuple(plan.names),
        coefficients=_coefficients(plan, blend, settings, table.detach()),
        rows=blend.names if settings.per == "layer" else (ALL,),
        history=tuple(trace.history),
        entropy=tuple(tuple(_mean(step[name]) for name in names) for step in trace.entropy),
        confidence=tuple(tuple(_mean(step[name]) for name in names) for step in trace.confidence),
        classes={task: {key: tuple(v.tolist()) for key, v in ends.items()} for task, ends in trace.classes.items()},
        settings={**plan.values, **vars(settings), "kept": blend.keep},
        findings=(*said, *trace.collapsed()),
        samples=trace.samples,
        seconds=round(time.perf_counter() - started, 3),
        data_used=used,
        transductive=transductive,
        suite=suite,
    )


def entropy(logits: Tensor) -> Tensor:
    """Shannon entropy in nats of softmax(logits) over the last dimension."""
    logs = functional.log_softmax(logits, dim=-1)
    return -(logs.exp() * logs).sum(-1)


def _groups(tasks: Sequence[_Task], settings: Settings, resolution: int) -> list[list[_Task]]:
    """The mini-batches of one step, each named by its task, as they pass the model: one or a few at a time."""
    most = max(1, CHUNK_PIXELS // resolution**2)
    groups: list[list[_Task]] = []
    room = 0
    for task in [task for task in tasks for _ in range(settings.batches)]:
        if not groups or task.draws.batch > room:
            groups.append([])
            room = most
        groups[-1].append(task)
        room -= task.draws.batch
    return groups


def _look(blend: Blend, group: Sequence[_Task], settings: Settings, trace: _Trace, step: int) -> None:
    """Mini-batches of some tasks: their gradient goes into the merged weights, what they showed into the trace."""
    features = blend.features([task.inputs.images[task.draws.next()] for task in group])
    loss = torch.zeros((), device=blend.device)
    for task, rows in zip(group, features, strict=True):
        logits = task.head.logits(rows)
        mean = entropy(logits).mean()
        if not bool(torch.isfinite(mean.detach())):
            raise MergeLabError(
                f"AdaMerging diverged: the entropy of {task.inputs.task} is {float(mean.detach())} at step {step + 1}. "
                f"Lower the rate {settings.rate:g}, or keep coefficients between 0 and 1 (clamp: project)."
            )
        loss = loss + mean * (task.weight / settings.batches)
        trace.see(step, task.inputs.task, mean.detach(), logits.detach().softmax(-1))
    if any(task.weight for task in group):
        loss.backward()


def _finite(slopes: Tensor, step: int, settings: Settings) -> Tensor:
    if not bool(torch.isfinite(slopes).all()):
        raise MergeLabError(
            f"AdaMerging diverged: the coefficients' gradient is not finite at step {step + 1}. "
            f"Lower the rate {settings.rate:g}, or keep coefficients between 0 and 1 (clamp: project)."
        )
    return slopes


def _tasks(plan: Plan, inputs: Sequence[Unlabelled], settings: Settings, device: torch.device) -> list[_Task]:
    """The inputs in the models' order, with heads on the device and weights."""
    given = {one.task: one for one in inputs}
    for name in plan.names:
        if name not in given:
            raise MethodError(f"There are no inputs of the task {name!r} to learn from; give some for every model.")
    out = []
    for name, weight in zip(plan.names, plan.values["weight"], strict=True):
        one = given[name]
        if not len(one.images):
            raise MethodError(f"There is no picture of the task {name!r} to learn from; give some for every model.")
        draws = Draws(len(one.images), settings.batch, settings.seed, name)
        out.append(_Task(one, head_on(one.head, device), float(weight), draws))
    return out


def head_on(head: Head, device: torch.device) -> Head:
    """The head with its tensors on ``device``."""
    bias, projection = (None if one is None else one.to(device) for one in (head.bias, head.projection))
    return replace(head, weight=head.weight.to(device), bias=bias, projection=projection)


class _Trace:
    """What a run showed: coefficients every few steps; entropy and confidence of each; classes at its two ends."""

    def __init__(self, steps: int) -> None:
        self.steps, self.every = steps, max(1, math.ceil(steps / RECORDS))
        self.window = max(1, math.ceil(steps / 5))
        self.history: list[tuple[int, tuple[tuple[float, ...], ...]]] = []
        self.entropy: list[dict[str, list[float]]] = []
        self.confidence: list[dict[str, list[float]]] = []
        self.classes: dict[str, dict[str, Tensor]] = {}
        self.samples = 0

    def record(self, step: int, table: Tensor) -> None:
        if step % self.every == 0 or step == self.steps:
            self.history.append((step, tuple(tuple(row) for row in table.tolist())))

    def see(self, step: int, task: str, mean: Tensor, chances: Tensor) -> None:
        if len(self.entropy) <= step:
            self.entropy.append({})
            self.confidence.append({})
        top = chances.max(-1)
        self.entropy[step].setdefault(task, []).append(float(mean))
        self.confidence[step].setdefault(task, []).append(float(top.values.mean()))
        counts = torch.bincount(top.indices.cpu(), minlength=chances.shape[-1])
        ends = self.classes.setdefault(task, {"first": torch.zeros_like(counts), "last": torch.zeros_like(counts)})
        if step < self.window:
            ends["first"] += counts
        if step >= self.steps - self.window:
            ends["last"] += counts
        self.samples += len(chances)

    def text(self, step: int) -> str:
        means = [_mean(values) for values in self.entropy[step].values()]
        return f"step {step + 1} of {self.steps}, mean entropy {_mean(means):.3f}"

    def collapsed(self) -> list[str]:
        """A sentence for every task whose predictions ended on one class although they were spread at first."""
        out = []
        for task, ends in self.classes.items():
            before, after = (float(ends[key].max() / ends[key].sum()) for key in ("first", "last"))
            if after >= COLLAPSED > before:
                out.append(
                    f"{task}: {after:.0%} of the last predictions are of one class ({before:.0%} at first), so its "
                    "entropy fell by collapse; give it less weight or fewer steps."
                )
        return out


def _coefficients(plan: Plan, blend: Blend, settings: Settings, table: Tensor) -> dict[str, tuple[float, ...]]:
    """A row for every merged tensor; those without a gradient have the task's value, or stay at the start."""
    everywhere = table[0].tolist() if settings.per == "task" else [float(settings.start)] * len(plan.names)
    found = {item.name: tuple(everywhere) for item in plan.items if item.merge}
    if settings.per == "layer":
        found |= {name: tuple(row) for name, row in zip(blend.names, table.tolist(), strict=True)}
    return found


def _data(tasks: Sequence[_Task]) -> tuple[str, bool]:
    """(which pictures were used, in words; whether they are the test pictures)."""
    by_split: dict[str, dict[str, int]] = {}
    for task in tasks:
        by_split.setdefault(task.inputs.split, {})[task.inputs.task] = len(task.inputs.images)
    return "; ".join(data_used(counts, split) for split, counts in sorted(by_split.items())), "test" in by_split


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
