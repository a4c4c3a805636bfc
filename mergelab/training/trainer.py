"""The trainer: steps over one task's lessons, or over several tasks' at once.

One task gives an expert. Several give joint training: every step takes a batch of each task and goes down the mean of
their losses, each task counting alike. ``combine="pcgrad"`` takes from each task's gradient first what goes against
another's (Yu et al., 2020).
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import MergeLabError
from ..methods._surgery import gram, projected
from ..progress import Progress, Stop, report
from ..tasks import Head
from .adapted import Adapted
from .finetune import fast_bfloat16
from .learner import Learner, Lesson, State
from .order import Order, steps_per_epoch
from .tuning import Tuning

COMBINE = ("mean", "pcgrad")
_LOOK = 16  # steps between two looks at whether the loss is still finite: a look waits for the device


@dataclass(frozen=True)
class Epoch:
    """What was seen in an epoch, or in a part of one that a merge cut off.

    ``losses`` by task and ``norm`` (of a step's gradient, before clipping) are means over its steps; ``moved`` is how
    far the weights went, ‖θ_end − θ_start‖; ``samples`` counts items, ``seconds`` the steps alone.
    """

    end: int  # the step after its last
    losses: Mapping[str, float]
    norm: float
    moved: float
    samples: int
    seconds: float


class Trainer:
    """Training that can be stopped after any step, saved after any epoch, and gone on with.

    ``total``: steps of the whole budget, for the schedule. ``per_epoch``: steps an epoch; by default as many as the
    largest task has batches. ``key`` tells courses of training on the same task apart where randomness is drawn
    (adapters, dropout). Use as a context manager: at its end the learner has its own module back.
    """

    def __init__(
        self, learner: Learner, lessons: Sequence[Lesson], tuning: Tuning, start: State, *,
        epochs: int = 1, total: int | None = None, per_epoch: int | None = None, combine: str = "mean", key: int = 0,
    ) -> None:  # fmt: skip
        if not lessons or combine not in COMBINE:
            raise MergeLabError(f"Training needs at least one task, and combines by {' or '.join(COMBINE)}.")
        self.learner, self.lessons, self.tuning, self.combine, self.key = learner, tuple(lessons), tuning, combine, key
        self.per_epoch = per_epoch or lockstep(self.lessons, tuning)
        self.total = total or epochs * self.per_epoch
        self._seed(0)
        self._adapted = Adapted(learner, lessons, tuning, start)
        self._heads = [_Trained(lesson.head) if tuning.heads == "trained" else None for lesson in lessons]
        of_heads = [p for head in self._heads if head is not None for p in head.parameters]
        self._optimiser = tuning.optimiser_of(self._adapted.parameters, of_heads)
        # gradient surgery is about what tasks share: each head is its own task's
        self._parameters = [*self._adapted.parameters, *of_heads]
        self._orders = [order_of(lesson, tuning, self.per_epoch) for lesson in self.lessons]

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *_: object) -> None:
        self._adapted.close()

    # ---- steps ------------------------------------------------------------------------------------------------------

    def run(
        self, first: int, last: int, *, on_epoch: Callable[[Epoch], None] | None = None,
        progress: Progress | None = None, stop: Stop | None = None,
    ) -> list[Epoch]:  # fmt: skip
        """Take the steps from ``first`` up to, not with, ``last``; what each epoch saw.

        Raises Cancelled between two steps when ``stop`` is set, and MergeLabError when the loss is no longer finite.
        """
        out: list[Epoch] = []
        with self.learner.training(True):
            step = first
            while step < last:
                end = min(last, (step // self.per_epoch + 1) * self.per_epoch)
                out.append(self._epoch(step, end, first, last, progress, stop))
                step = end
                if on_epoch is not None:
                    with self.learner.training(False):
                        on_epoch(out[-1])
        return out

    def _epoch(  # noqa: PLR0917
        self, first: int, end: int, run_first: int, run_last: int, progress: Progress | None, stop: Stop | None
    ) -> Epoch:
        self._seed(1 + first)
        before = self._adapted.state()
        sums = torch.zeros(len(self.lessons), device=self.learner.device)
        counts, norms, samples, started = [0] * len(self.lessons), 0.0, 0, time.perf_counter()
        for step in range(first, end):
            if stop is not None:
                stop.check()
            parts = [(i, places) for i, order in enumerate(self._orders) if len(places := order.places(step))]
            for group in self._optimiser.param_groups:
                group["lr"] = group["most"] * self.tuning.factor(step, self.total)
            self._optimiser.zero_grad(set_to_none=True)
            losses = self._gradients(parts, step)
            norms += float(nn.utils.clip_grad_norm_(self._parameters, self.tuning.clip or math.inf))
            self._optimiser.step()
            for (i, places), loss in zip(parts, losses, strict=True):
                sums[i] += loss
                counts[i] += 1
                samples += len(places)
            if (step + 1) % _LOOK == 0:
                self._finite(sums)
            epoch = f"epoch {step // self.per_epoch + 1}"
            report(progress, step + 1 - run_first, run_last - run_first, epoch)
        self._finite(sums)
        seconds = time.perf_counter() - started
        after = self._adapted.state()
        moved = math.sqrt(sum(float((after[n] - before[n]).norm()) ** 2 for n in after))
        losses_by = {lesson.task: float(total) / count for lesson, total, count in zip(
            self.lessons, sums, counts, strict=True) if count}  # fmt: skip
        return Epoch(end, losses_by, norms / (end - first), moved, samples, seconds)

    def _gradients(self, parts: Sequence[tuple[int, Tensor]], step: int) -> list[Tensor]:
        """Put the step's gradient into the parameters; each part's mean loss."""
        if self.combine == "mean" or len(parts) == 1:
            return [self._backward(i, places, 1 / len(parts)) for i, places in parts]
        losses, grads = [], []
        for i, places in parts:
            self._optimiser.zero_grad(set_to_none=True)
            losses.append(self._backward(i, places, 1.0))
            grads.append([None if p.grad is None else p.grad.clone() for p in self._parameters])
        tower = len(self._adapted.parameters)
        products = _gram([grad[:tower] for grad in grads])
        random = np.random.default_rng([self.tuning.seed, step])
        orders = [[int(j) for j in random.permutation(len(parts)) if j != i] for i in range(len(parts))]
        weights = projected(products, orders).mean(0)
        for place, parameter in enumerate(self._parameters):
            found = [grad[place] for grad in grads]
            shares = weights if place < tower else torch.full_like(weights, 1 / len(parts))
            parameter.grad = _weighted(found, shares)
        return losses

    def _backward(self, i: int, places: Tensor, share: float) -> Tensor:
        """Add ``share`` of the mean gradient over ``places``, a batch at a time; the mean loss."""
        lesson, head = self.lessons[i], self._heads[i]
        total = torch.zeros((), device=self.learner.device)
        for chunk in places.split(self.tuning.batch):
            with self._autocast():
                loss = self.learner.loss(lesson, chunk, None if head is None else head.now)
            part = len(chunk) / len(places)
            (loss * (share * part)).backward()
            total += loss.detach().float() * part
        return total

    def _finite(self, sums: Tensor) -> None:
        for lesson, total in zip(self.lessons, sums.tolist(), strict=True):
            if not math.isfinite(total):
                raise MergeLabError(
                    f"Training on {lesson.task} diverged: its loss is {total}. Lower the rate "
                    f"{self.tuning.tower_rate:g}, or clip gradients."
                )

    def _autocast(self) -> AbstractContextManager[object]:
        device, wanted = self.learner.device, self.tuning.precision
        half = wanted == "bfloat16" or (wanted == "auto" and fast_bfloat16(device))
        return torch.autocast(device.type, dtype=torch.bfloat16) if half else nullcontext()

    def _seed(self, more: int) -> None:
        """Dropout and adapters draw from torch's own generator: seeded for each course and epoch, not carried over."""
        names = zlib.crc32("\0".join(lesson.task for lesson in self.lessons).encode())
        mixed = np.random.SeedSequence([self.tuning.seed, names, self.key, more]).generate_state(1)[0]
        torch.manual_seed(int(mixed))

    def loss(self, items: int) -> float:
        """Mean over tasks of the loss as weights and heads are now, on at most the first ``items`` of each."""
        with torch.no_grad(), self.learner.training(False):
            losses = [
                float(
                    self.learner.loss(lesson, torch.arange(min(items, len(lesson))), None if head is None else head.now)
                )
                for lesson, head in zip(self.lessons, self._heads, strict=True)
            ]
        return sum(losses) / len(losses)

    # ---- what came out ----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """The trained tensors as they are now, dense, on the CPU."""
        return self._adapted.state()

    def heads(self) -> dict[str, Head]:
        """The head of every task as it is now."""
        return {lesson.task: lesson.head if head is None else head.detached()
                for lesson, head in zip(self.lessons, self._heads, strict=True)}  # fmt: skip

    def saved(self) -> dict[str, Tensor]:
        """Everything that a later trainer needs to go on: parameters, heads, the optimiser's moments."""
        out = {f"parameter/{i}": p.detach().cpu().contiguous() for i, p in enumerate(self._parameters)}
        for i, parameter in enumerate(self._parameters):
            for key, value in self._optimiser.state.get(parameter, {}).items():
                out[f"moment/{i}/{key}"] = torch.as_tensor(value).detach().cpu().contiguous()
        return out

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Go on from :meth:`saved` of a trainer that was made alike."""
        self.restore_moments(saved)
        with torch.no_grad():
            for i, parameter in enumerate(self._parameters):
                parameter.copy_(saved[f"parameter/{i}"])

    def restore_moments(self, saved: Mapping[str, Tensor]) -> None:
        """Take over the optimiser's moments only."""
        shapes = {f"parameter/{i}": p.shape for i, p in enumerate(self._parameters)}
        if any(name not in saved or saved[name].shape != shape for name, shape in shapes.items()):
            raise MergeLabError("What was saved belongs to another training run; start anew.")
        for name, value in saved.items():
            if name.startswith("moment/"):
                _, i, key = name.split("/")
                parameter = self._parameters[int(i)]
                kept = value.clone() if key == "step" else value.to(parameter.device, copy=True)
                self._optimiser.state[parameter][key] = kept


class _Trained:
    """A head whose weight and bias are trained."""

    def __init__(self, head: Head) -> None:
        given = [part for part in (head.weight, head.bias) if part is not None]
        self.parameters = [nn.Parameter(part.detach().float().clone()) for part in given]
        self.now = replace(head, weight=self.parameters[0], bias=None if head.bias is None else self.parameters[1])

    def detached(self) -> Head:
        bias = self.now.bias
        return replace(self.now, weight=self.now.weight.detach().cpu().clone(),
                       bias=None if bias is None else bias.detach().cpu().clone())  # fmt: skip


def lockstep(lessons: Sequence[Lesson], tuning: Tuning) -> int:
    """Steps an epoch where tasks go step by step together: as many as the largest has batches; 1 for ``gd``."""
    if tuning.optimiser == "gd":
        return 1
    return max(steps_per_epoch(len(lesson), tuning.batch) for lesson in lessons)


def order_of(lesson: Lesson, tuning: Tuning, per_epoch: int) -> Order:
    whole = tuning.batch if tuning.pace == "steps" and tuning.optimiser != "gd" else None
    return Order(lesson.task, len(lesson), per_epoch, tuning.seed, whole)


def _gram(grads: Sequence[Sequence[Tensor | None]]) -> Tensor:
    """Inner products [T, T] of gradients that are given parameter by parameter; none is zero."""
    out = torch.zeros(len(grads), len(grads), dtype=torch.float64)
    for parts in zip(*grads, strict=True):
        like = next((part for part in parts if part is not None), None)
        if like is not None:
            out += gram([torch.zeros_like(like) if part is None else part for part in parts]).cpu()
    return out


def _weighted(grads: Sequence[Tensor | None], shares: Tensor) -> Tensor | None:
    present = [(grad, float(share)) for grad, share in zip(grads, shares, strict=True) if grad is not None]
    if not present:
        return None
    out = torch.zeros_like(present[0][0])
    for grad, share in present:
        out.add_(grad, alpha=share)
    return out
