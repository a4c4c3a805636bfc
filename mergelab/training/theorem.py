"""Theorem 3.1 of ATM on a real model: is a task vector a multiple of the gradient, and for how long.

One step of full-batch gradient descent from a common base gives τ_t = −η∇L_t(base), so the mean of the task vectors is
−η∇L̄(base), a joint step on the mean loss; after k steps −kη∇L_t(base) is only the first order (Zhou et al., 2024,
arXiv 2411.03055, theorem 3.1; bounds in Zhou et al., 2025, arXiv 2508.16082). Here both sides are computed apart, in
float64, and compared; then the same for optimisers that people use, of which the theorem does not speak.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import MergeLabError
from ..progress import Progress, Stop, report
from .learner import Learner, Lesson, State
from .order import Order, steps_per_epoch
from .tuning import Tuning

#: Rates at which one step is also taken in float32.
ROUNDED_RATES = (1e-5, 1e-3, 1e-1)
#: Items whose gradient is taken at once: limits memory, and fixes the order of the sum.
_CHUNK = 64
_ADAM = ("adam", "adamw")
_ADAM_EPS = 1e-8
#: ``measure(state)``: accuracy by task of the trained tensors ``state``, which it must not keep.
Measure = Callable[[State], Mapping[str, float]]


@dataclass(frozen=True)
class Theorem:
    """What was found, as plain values. ``error`` is ‖τ + kηg‖ / ‖kηg‖, ``cosine`` that of τ and −g.

    ``rows``: one for each optimiser and number of steps k: ``error`` and ``cosine`` by task, ``mean`` (both of the mean
    task vector and the mean gradient), ``moved`` = ‖τ̄‖/‖base‖, and ``loss`` and ``accuracy`` by task of base + τ̄.

    ``joint``: for each k, how far k joint GD steps are from ``apart``, the merge of experts of k steps each, and from
    ``rounds``, k rounds of one step each that end with a merge, as a share of the way that joint training went.

    ``rounding``: the error of one GD step by task at each of :data:`ROUNDED_RATES`, when the step is taken in
    ``float32`` and in ``float64``.

    ``decay``: AdamW's −ηλ·base within one step: ``norm``; its ``share`` of each task vector's norm and of the
    ``mean``'s; ``error``, the largest relative distance of what a task vector has beyond Adam's step from it. It is the
    same for every task, so that the mean keeps all of it while what tasks learn averages out, and a sum of T task
    vectors has it T times.
    """

    tasks: tuple[str, ...]
    rate: float
    adam_rate: float
    weight_decay: float
    steps: tuple[int, ...]
    optimisers: tuple[str, ...]
    items: Mapping[str, int]
    batches: Mapping[str, int]  # of sgd
    parameters: int
    gradients: Mapping[str, float]  # ‖g‖ by task
    mean_gradient: float
    base: Mapping[str, Any]  # loss and accuracy by task
    rows: tuple[Mapping[str, Any], ...]
    joint: tuple[Mapping[str, Any], ...]
    rounding: tuple[Mapping[str, Any], ...]
    decay: Mapping[str, Any] | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def theorem(
    learner: Learner,
    lessons: Sequence[Lesson],
    *,
    rate: float = 0.01,
    adam_rate: float = 1e-5,
    steps: Sequence[int] = (1, 2, 5, 10),
    optimisers: Sequence[str] = ("gd", "sgd", "momentum", "adam", "adamw"),
    weight_decay: float = 0.1,
    batch: int | None = None,
    seed: int = 0,
    start: State | None = None,
    measure: Measure | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Theorem:
    """Compare task vectors with gradients, starting from the learner's weights with ``start`` in their place.

    ``rate`` η is that of gd, sgd and momentum, ``adam_rate`` that of adam and adamw (the one ATM's authors train with;
    its first step does not depend on the gradient's size). All take the whole of a task's items every step, but sgd,
    which takes ``batch`` of them (default: a quarter), in an order drawn by ``seed``. Heads are frozen, dropout is off,
    norms are in evaluation mode, no gradient is clipped. ``weight_decay`` λ is adamw's.

    The learner is left as it is. Memory: about 6 + len(steps) copies of the trained tensors in float64.

    Raises MergeLabError for wrong numbers, a device without float64, a loss without gradient, one that is no longer
    finite; Cancelled after ``stop``.
    """
    tunings = {
        name: Tuning(
            optimiser=name, rate=adam_rate if name in _ADAM else rate, weight_decay=weight_decay, clip=None, seed=seed
        )
        for name in optimisers
    }
    _check(lessons, steps, tunings.values(), batch)
    steps, optimisers, started = tuple(sorted(set(steps))), tuple(tunings), time.perf_counter()
    lab = _Lab(learner, lessons, start, batch, seed, progress, stop)
    lab.total = len(lessons) * (1 + len(optimisers) * (1 + steps[-1]) + 2 * steps[-1] * ("gd" in optimisers))
    with lab.learner.training(False):
        norms, rounding = lab.look()
        base = {"loss": lab.losses(), "accuracy": lab.accuracy(measure)}
        rows: list[dict[str, Any]] = []
        joint: list[dict[str, Any]] = []
        decay = None
        for name, tuning in tunings.items():
            found, sums, beyond = lab.course(tuning, steps)
            for k, row in found.items():
                lab.put(sums[k], 1 / len(lessons))
                rows.append(row | {"loss": lab.losses(), "accuracy": lab.accuracy(measure)})
            if name == "gd":
                joint = lab.together(tuning, sums)
            decay = beyond or decay
            del sums  # before the next optimiser's
    return Theorem(
        tuple(lesson.task for lesson in lessons), rate, adam_rate, weight_decay, steps, optimisers,
        {lesson.task: len(lesson) for lesson in lessons}, {lesson.task: lab.batch(lesson) for lesson in lessons},
        sum(p.numel() for p in lab.parameters), norms, _norm(lab.mean), base, tuple(rows), tuple(joint),
        tuple(rounding), decay, time.perf_counter() - started,
    )  # fmt: skip


class _Lab:
    """A float64 copy of the model, and the base that every course starts from."""

    def __init__(  # noqa: PLR0917
        self, learner: Learner, lessons: Sequence[Lesson], start: State | None, batch: int | None, seed: int,
        progress: Progress | None, stop: Stop | None,
    ) -> None:  # fmt: skip
        if learner.device.type == "mps":
            raise MergeLabError("This device has no float64, which the theorem is checked in; use --device cpu.")
        self.learner = Learner(copy.deepcopy(learner.module).double(), learner.features)
        self.lessons, self.seed, self._batch = tuple(lessons), seed, batch
        self._progress, self._stop, self.done, self.total = progress, stop, 0, 1
        self.learner.load(start or {})
        self.names = self.learner.look(lessons[0])
        self.learner.module.requires_grad_(False)
        own = dict(self.learner.module.named_parameters())
        self.parameters: list[nn.Parameter] = [own[name].requires_grad_(True) for name in self.names]  # type: ignore[misc]
        # as they were given: in float32 they are half of a copy
        given = {**{name: p.detach() for name, p in learner.module.named_parameters()}, **(start or {})}
        self.base = [given[name] for name in self.names]
        self.mean: list[Tensor] = []

    # ---- where the module stands ------------------------------------------------------------------------------------

    def put(self, moves: Sequence[Tensor] | None = None, share: float = 1.0) -> None:
        """Set the module to the base, plus ``share`` times ``moves``."""
        with torch.no_grad():
            for i, parameter in enumerate(self.parameters):
                parameter.copy_(self.base[i])
                if moves is not None:
                    parameter.add_(moves[i], alpha=share)

    def moves(self) -> Iterator[Tensor]:
        """How far every tensor is from the base's."""
        for parameter, base in zip(self.parameters, self.base, strict=True):
            yield parameter.detach() - base.to(parameter)

    def losses(self) -> dict[str, float]:
        """Mean loss of every task's items, by task."""
        with torch.no_grad():
            return {lesson.task: sum(float(loss) for loss in self._parts(lesson, torch.arange(len(lesson))))
                    for lesson in self.lessons}  # fmt: skip

    def accuracy(self, measure: Measure | None) -> dict[str, float] | None:
        """What ``measure`` says of the module as it stands."""
        self._free()
        values = (parameter.detach() for parameter in self.parameters)
        return None if measure is None else dict(measure(dict(zip(self.names, values, strict=True))))

    # ---- gradients --------------------------------------------------------------------------------------------------

    def gradient(self, lesson: Lesson, places: Tensor | None = None) -> list[Tensor]:
        """Of the mean loss of the items at ``places`` (all), by parameter; it lies in the parameters' ``grad``."""
        self._free()
        self._add(lesson, torch.arange(len(lesson)) if places is None else places)
        return self._grads()

    def _add(self, lesson: Lesson, places: Tensor) -> None:
        if self._stop is not None:
            self._stop.check()
        total = 0.0
        for loss in self._parts(lesson, places):
            loss.backward()
            total += float(loss.detach())
        if not math.isfinite(total):
            raise MergeLabError(f"The loss of {lesson.task} is {total} after {self.done} gradients. Lower the rate.")
        self.done += 1
        report(self._progress, self.done, self.total, f"gradients of {lesson.task}")

    def _parts(self, lesson: Lesson, places: Tensor) -> Iterator[Tensor]:
        for chunk in places.split(_CHUNK):
            yield self.learner.loss(lesson, chunk) * (len(chunk) / len(places))

    def _grads(self) -> list[Tensor]:
        return [p.grad for p in self.parameters if p.grad is not None]  # look() says that each has one

    def _free(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def batch(self, lesson: Lesson) -> int:
        """Items of a step of sgd."""
        return min(len(lesson), self._batch or math.ceil(len(lesson) / 4))

    # ---- what is compared -------------------------------------------------------------------------------------------

    def look(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Norms of the base's gradients by task, and what rounding does to a step; keeps their mean."""
        self.put()
        norms: dict[str, float] = {}
        rounding: list[dict[str, Any]] = [{"rate": r, "float32": {}, "float64": {}} for r in ROUNDED_RATES]
        for lesson in self.lessons:
            grads = self.gradient(lesson)
            norms[lesson.task] = _norm(grads)
            if not norms[lesson.task]:
                raise MergeLabError(f"The loss of {lesson.task} has no gradient at the base: nothing to compare with.")
            for row in rounding:
                for kind in ("float32", "float64"):
                    row[kind][lesson.task] = _rounded(self.base, grads, row["rate"], getattr(torch, kind))
            if not self.mean:
                self.mean = [torch.zeros_like(grad) for grad in grads]
            for total, grad in zip(self.mean, grads, strict=True):
                total.add_(grad, alpha=1 / len(self.lessons))
        return norms, rounding

    def course(
        self, tuning: Tuning, steps: Sequence[int]
    ) -> tuple[dict[int, dict[str, Any]], dict[int, list[Tensor]], dict[str, Any] | None]:
        """Train every task from the base: rows and sums of the task vectors by number of steps, and AdamW's decay."""
        rate, count = tuning.tower_rate, len(self.lessons)
        rows: dict[int, dict[str, Any]] = {
            k: {"optimiser": tuning.optimiser, "steps": k, "rate": rate, "error": {}, "cosine": {}} for k in steps
        }
        sums = {k: [torch.zeros_like(p) for p in self.parameters] for k in steps}
        decay: dict[str, Any] | None = None
        if tuning.optimiser == "adamw" and tuning.weight_decay and 1 in steps:
            decay = {"norm": rate * tuning.weight_decay * _norm(self.base), "share": {}, "error": 0.0}
        for lesson in self.lessons:
            self.put()
            grads = [grad.clone() for grad in self.gradient(lesson)]
            for k in self._steps(tuning, lesson, steps[-1]):
                if k not in sums:
                    continue
                error, cosine = _compared(self.moves(), grads, k * rate)
                rows[k]["error"][lesson.task], rows[k]["cosine"][lesson.task] = error, cosine
                for total, move in zip(sums[k], self.moves(), strict=True):
                    total.add_(move)
                if k == 1 and decay is not None:
                    decay["share"][lesson.task] = decay["norm"] / _norm(self.moves())
                    decay["error"] = max(decay["error"], self._beyond_adam(tuning, grads) / decay["norm"])
        for k, row in rows.items():
            error, cosine = _compared((total / count for total in sums[k]), self.mean, k * rate)
            row |= {"mean": {"error": error, "cosine": cosine}, "moved": _norm(sums[k]) / count / _norm(self.base)}
        if decay is not None:
            decay["mean"] = decay["norm"] * count / _norm(sums[1])
        return rows, sums, decay

    def _steps(self, tuning: Tuning, lesson: Lesson, last: int) -> Iterator[int]:
        """Take ``last`` steps from where the module stands; yields each step's number after it."""
        optimiser = tuning.optimiser_of(self.parameters, [])
        order = None
        if tuning.optimiser == "sgd":
            per_epoch = steps_per_epoch(len(lesson), self.batch(lesson))
            order = Order(lesson.task, len(lesson), per_epoch, self.seed)
        for step in range(last):
            self.gradient(lesson, None if order is None else order.places(step))
            optimiser.step()
            yield step + 1

    def _beyond_adam(self, tuning: Tuning, grads: Sequence[Tensor]) -> float:
        """‖d + ηλ·base‖, d what the first step has beyond Adam's own, which is −η g / (|g| + ε)."""
        rate = tuning.tower_rate
        pairs = zip(self.moves(), grads, self.base, strict=True)
        return _norm(
            move + rate * grad / (grad.abs() + _ADAM_EPS) + rate * tuning.weight_decay * base.to(move)
            for move, grad, base in pairs
        )

    def together(self, tuning: Tuning, sums: Mapping[int, Sequence[Tensor]]) -> list[dict[str, Any]]:
        """Joint gradient descent beside the merge of experts of k steps (their ``sums``), and k rounds of one step."""
        rate, count, out = tuning.tower_rate, len(self.lessons), []
        joint = [torch.zeros_like(p) for p in self.parameters]
        rounds = [torch.zeros_like(p) for p in self.parameters]
        for k in range(1, max(sums) + 1):
            self.put(joint)
            self._free()
            for lesson in self.lessons:
                self._add(lesson, torch.arange(len(lesson)))
            for move, grad in zip(joint, self._grads(), strict=True):
                move.add_(grad, alpha=-rate / count)
            ends = [torch.zeros_like(p) for p in self.parameters]
            for lesson in self.lessons:
                self.put(rounds)
                next(self._steps(tuning, lesson, 1))
                for end, move in zip(ends, self.moves(), strict=True):
                    end.add_(move, alpha=1 / count)
            rounds = ends
            if k in sums:
                way = _norm(joint)
                apart = _norm(total / count - move for total, move in zip(sums[k], joint, strict=True))
                off = _norm(other - move for other, move in zip(rounds, joint, strict=True))
                out.append({"steps": k, "apart": apart / way, "rounds": off / way})
        return out


def _check(lessons: Sequence[Lesson], steps: Sequence[int], tunings: Collection[Tuning], batch: int | None) -> None:
    if not lessons or not tunings:
        raise MergeLabError("The theorem is looked at with at least one task and one optimiser.")
    if not steps or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in steps):
        raise MergeLabError("'steps' must be whole numbers from 1, such as 1, 2, 5, 10.")
    if not all(tuning.tower_rate > 0 for tuning in tunings):
        raise MergeLabError("A rate must be above 0: without a step there is no task vector.")
    if batch is not None and batch < 1:
        raise MergeLabError(f"'batch' must be a whole number from 1, not {batch}.")


def _norm(parts: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(part.double().square().sum()) for part in parts))


def _compared(moves: Iterable[Tensor], grads: Sequence[Tensor], factor: float) -> tuple[float, float]:
    """‖τ + c·g‖ / ‖c·g‖ and the cosine of τ and −g, for a factor c > 0."""
    off = inner = length = own = 0.0
    for move, grad in zip(moves, grads, strict=True):
        off += float((move + factor * grad).square().sum())
        inner -= float((move * grad).sum())
        length += float(grad.square().sum())
        own += float(move.square().sum())
    both = math.sqrt(length * own)
    return math.sqrt(off) / (factor * math.sqrt(length)), inner / both if both else 0.0


def _rounded(base: Sequence[Tensor], grads: Sequence[Tensor], rate: float, dtype: torch.dtype) -> float:
    """The error of one GD step that is taken in ``dtype``: what rounding the new weights leaves of a small step."""
    off = length = 0.0
    for weight, grad in zip(base, grads, strict=True):
        own, down = weight.to(grad.device, dtype), grad.to(dtype)
        wanted = down.double() * rate
        off += float(((own.add(down, alpha=-rate) - own).double() + wanted).square().sum())
        length += float(wanted.square().sum())
    return math.sqrt(off / length)
