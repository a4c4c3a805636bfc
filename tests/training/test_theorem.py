"""The theorem lab against algebra: scalar recurrences written out here, and gradients taken without the lab."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from torch import Tensor, nn

from mergelab.errors import Cancelled, MergeLabError
from mergelab.progress import Stop
from mergelab.tasks import Head
from mergelab.training.aggregate import Aggregation
from mergelab.training.atm import Tuned, rounds
from mergelab.training.learner import Learner, Lesson
from mergelab.training.theorem import theorem
from mergelab.training.trainer import Trainer
from mergelab.training.tuning import Tuning

STEPS = (1, 2, 5, 10)


# ---- a curved toy: three tasks on a small MLP ----------------------------------------------------------------------


def curved(items: int = 12, dropout: float = 0.0) -> tuple[Learner, list[Lesson]]:
    rng = torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 4)).double()
    lessons = [
        Lesson(
            f"t{i}", torch.randn(items, 5, dtype=torch.float64, generator=rng),
            torch.randint(0, 3, (items,), generator=rng), Head(2 * torch.randn(3, 4, generator=rng)),
        )
        for i in range(3)
    ]  # fmt: skip
    return Learner(module, lambda tower, x: tower(x)), lessons


def gradients(learner: Learner, lesson: Lesson) -> dict[str, Tensor]:
    """Of the mean cross-entropy over all items at once, at the learner's weights."""
    own = dict(learner.module.named_parameters())
    scores = learner.module(lesson.inputs) @ lesson.head.weight.double().T
    loss = nn.functional.cross_entropy(scores, lesson.labels)
    return dict(zip(own, torch.autograd.grad(loss, list(own.values())), strict=True))


def weights(learner: Learner) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in learner.module.named_parameters()}


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float((one[name] - other[name]).square().sum()) for name in one))


class Kept:
    """A ``measure`` that keeps what it is asked about: the base, then one state a row."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []

    def __call__(self, state) -> dict[str, float]:
        self.states.append({name: tensor.clone() for name, tensor in state.items()})
        return {"t0": len(self.states) / 100}

    def of(self, found, optimiser: str, k: int) -> dict[str, Tensor]:
        names = [(row["optimiser"], row["steps"]) for row in found.rows]
        return self.states[1 + names.index((optimiser, k))]


def test_one_step_is_the_gradient_and_the_distance_grows_from_there():
    found = theorem(*curved(), rate=0.1, steps=STEPS, optimisers=("gd",))
    for part in (*(lambda row, t=t: (row["error"][t], row["cosine"][t]) for t in ("t0", "t1", "t2")),
                 lambda row: (row["mean"]["error"], row["mean"]["cosine"])):  # fmt: skip
        errors, cosines = zip(*(part(row) for row in found.rows), strict=True)
        assert errors[0] < 1e-9 and errors[1] > 1e-4
        assert all(a < b for a, b in itertools.pairwise(errors))
        assert cosines[0] == pytest.approx(1, abs=1e-12) and cosines[-1] < 1 - 1e-4


def test_the_merge_after_one_step_is_one_joint_step_on_the_mean_loss():
    learner, lessons = curved(items=150)  # more than are taken at once
    base, kept = weights(learner), Kept()
    found = theorem(learner, lessons, rate=0.1, steps=(1, 2), optimisers=("gd",), measure=kept)
    grads = [gradients(learner, lesson) for lesson in lessons]
    joint = {name: base[name] - 0.1 * sum(grad[name] for grad in grads) / 3 for name in base}
    assert distance(kept.of(found, "gd", 1), joint) < 1e-9 * distance(joint, base)
    assert distance(kept.states[0], base) == 0
    for lesson, grad in zip(lessons, grads, strict=True):
        assert found.gradients[lesson.task] == pytest.approx(
            math.sqrt(sum(float(g.square().sum()) for g in grad.values()))
        )
    assert found.rows[0]["moved"] == pytest.approx(
        distance(joint, base) / math.sqrt(sum(float(p.square().sum()) for p in base.values()))
    )
    assert [row["accuracy"] for row in found.rows] == [{"t0": 0.02}, {"t0": 0.03}] and found.base["accuracy"] == {
        "t0": 0.01
    }


def test_rounds_of_one_step_are_joint_training_and_one_merge_at_the_end_is_not():
    found = theorem(*curved(), rate=0.1, steps=STEPS, optimisers=("gd",))
    assert [row["steps"] for row in found.joint] == list(STEPS)
    assert all(row["rounds"] < 1e-9 for row in found.joint)
    apart = [row["apart"] for row in found.joint]
    assert apart[0] < 1e-9 and apart[1] > 1e-4 and all(a < b for a, b in itertools.pairwise(apart))


def test_the_trainers_own_rounds_of_one_step_walk_as_joint_gradient_descent():
    learner, lessons = curved()
    base = weights(learner)
    tuning = Tuning(optimiser="gd", rate=0.1, clip=None, precision="float32")

    def tune(number, now):
        for lesson in lessons:
            with Trainer(learner, [lesson], tuning, now) as trainer:
                trainer.run(0, 1)
                yield Tuned(lesson.task, trainer.state(), {"start_loss": 1.0})

    merged = list(rounds(base, tune, Aggregation(), last=6))[-1].base
    for _ in range(6):
        grads = [gradients(learner_at(learner, base), lesson) for lesson in lessons]
        base = {name: base[name] - 0.1 * sum(grad[name] for grad in grads) / 3 for name in base}
    assert distance(merged, base) < 1e-9 * distance(base, weights(curved()[0]))


def learner_at(learner: Learner, state: dict[str, Tensor]) -> Learner:
    learner.load(state)
    return learner


def test_float32_cannot_tell_a_small_step():
    found = theorem(*curved(), steps=(1,), optimisers=("gd",))
    assert [row["rate"] for row in found.rounding] == [1e-5, 1e-3, 1e-1]
    for task in found.tasks:
        rough, fine = ([row[kind][task] for row in found.rounding] for kind in ("float32", "float64"))
        assert all(a > 1e5 * b for a, b in zip(rough, fine, strict=True))
        # a rounding of the weights does not shrink with the step: the share falls as 1 / rate
        assert rough[0] > 30 * rough[1] > 900 * rough[2]


# ---- two weights whose gradients are known by hand -----------------------------------------------------------------
# Items (a, 0) and (0, b) of class 0 under the head ±w·x: the mean loss is ½Σ log(1 + exp(−2 w_i x_i)), and its gradient
# in w_i is −x_i / (1 + exp(2 w_i x_i)). A task's items move each weight by itself.

HAND = {"a": (1.0, 0.4), "b": (0.5, 2.0)}
START = (0.3, -0.2)
DECAY = 0.3


def slope(w: float, x: float) -> float:
    return -x / (1 + math.exp(2 * w * x))


def by_hand() -> tuple[Learner, list[Lesson]]:
    module = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        module.weight.copy_(torch.tensor([START], dtype=torch.float64))
    head = Head(torch.tensor([[1.0], [-1.0]]))
    lessons = [Lesson(task, torch.diag(torch.tensor(x, dtype=torch.float64)), torch.zeros(2, dtype=torch.long), head)
               for task, x in HAND.items()]  # fmt: skip
    return Learner(module, lambda tower, x: tower(x)), lessons


def walk(optimiser: str, x: float, w: float, rate: float, last: int) -> float:
    """A weight after ``last`` steps, from the papers' recurrences."""
    speed, m, v = 0.0, 0.0, 0.0
    for step in range(1, last + 1):
        g = slope(w, x)
        if optimiser == "gd":
            w -= rate * g
        elif optimiser == "momentum":
            speed = 0.9 * speed + g
            w -= rate * speed
        else:
            w *= 1 - rate * DECAY * (optimiser == "adamw")
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            w -= rate * (m / (1 - 0.9**step)) / (math.sqrt(v / (1 - 0.999**step)) + 1e-8)
    return w


@pytest.mark.parametrize("optimiser", ["gd", "momentum", "adam", "adamw"])
def test_every_optimiser_is_the_one_of_its_paper(optimiser: str):
    kept = Kept()
    found = theorem(
        *by_hand(), rate=0.2, adam_rate=0.05, weight_decay=DECAY, steps=STEPS, optimisers=(optimiser,), measure=kept
    )
    rate = 0.05 if optimiser.startswith("adam") else 0.2
    for row in found.rows:
        k, moves = row["steps"], {}
        for task, xs in HAND.items():
            move = [walk(optimiser, x, w, rate, k) - w for x, w in zip(xs, START, strict=True)]
            moves[task], g = move, [slope(w, x) for x, w in zip(xs, START, strict=True)]
            length = math.hypot(*g)
            off = math.hypot(*(a + k * rate * b for a, b in zip(move, g, strict=True)))
            inner = -sum(a * b for a, b in zip(move, g, strict=True))
            assert row["error"][task] == pytest.approx(off / (k * rate * length), rel=1e-6, abs=1e-12)
            assert row["cosine"][task] == pytest.approx(inner / length / math.hypot(*move), rel=1e-9)
        merged = [w + sum(move[i] for move in moves.values()) / 2 for i, w in enumerate(START)]
        (reached,) = kept.of(found, optimiser, k).values()
        assert reached[0].tolist() == pytest.approx(merged, rel=1e-9)
        for task, xs in HAND.items():
            loss = sum(math.log1p(math.exp(-2 * w * x)) for x, w in zip(xs, merged, strict=True)) / 2
            assert row["loss"][task] == pytest.approx(loss, rel=1e-9)


def test_adams_first_step_has_the_rates_size_and_another_direction():
    kept = Kept()
    found = theorem(*by_hand(), adam_rate=0.05, steps=(1,), optimisers=("adam",), measure=kept)
    (reached,) = kept.of(found, "adam", 1).values()
    assert (reached[0] - torch.tensor(START)).abs().tolist() == pytest.approx([0.05, 0.05], rel=1e-6)
    for task, xs in HAND.items():
        one, two = (abs(slope(w, x)) for x, w in zip(xs, START, strict=True))
        assert found.rows[0]["cosine"][task] == pytest.approx(
            (one + two) / math.sqrt(2) / math.hypot(one, two), rel=1e-6
        )
        assert found.rows[0]["cosine"][task] < 0.99


def test_weight_decay_is_in_every_task_vector_and_does_not_cancel():
    found = theorem(*by_hand(), adam_rate=0.05, weight_decay=DECAY, steps=(1, 2), optimisers=("adam", "adamw"))
    norm = 0.05 * DECAY * math.hypot(*START)
    decay = found.decay
    assert decay["norm"] == pytest.approx(norm) and decay["error"] < 1e-9
    # both tasks push both weights up, by the rate: each task vector and their mean is rate − rate·λ·w
    whole = math.hypot(*(0.05 - 0.05 * DECAY * w for w in START))
    assert decay["share"] == pytest.approx({"a": norm / whole, "b": norm / whole}, rel=1e-6)
    assert decay["mean"] == pytest.approx(norm / whole, rel=1e-6)
    without = theorem(*by_hand(), adam_rate=0.05, weight_decay=0.0, steps=(1,), optimisers=("adam", "adamw"))
    assert without.decay is None and without.rows[0]["error"] == without.rows[1]["error"]


def test_where_tasks_disagree_the_mean_has_more_of_the_decay_than_any_task():
    decay = theorem(*curved(), adam_rate=0.01, weight_decay=0.1, steps=(1,), optimisers=("adamw",)).decay
    assert decay["error"] < 1e-9 and decay["mean"] > 1.2 * max(decay["share"].values())


# ---- what is around it ---------------------------------------------------------------------------------------------


def test_mini_batches_of_everything_are_full_batches():
    whole = theorem(*curved(), rate=0.1, steps=(1, 2), optimisers=("gd", "sgd"), batch=12)
    for gd, sgd in zip(whole.rows[:2], whole.rows[2:], strict=True):
        assert sgd["mean"]["error"] == pytest.approx(gd["mean"]["error"], rel=1e-6, abs=1e-12)
    few = [theorem(*curved(), rate=0.1, steps=(1,), optimisers=("sgd",), seed=seed) for seed in (0, 0, 1)]
    assert few[0].batches == {"t0": 3, "t1": 3, "t2": 3}  # a quarter
    assert few[0].rows == few[1].rows != few[2].rows
    assert few[0].rows[0]["mean"]["error"] > 0.01


def test_dropout_is_off_and_the_learner_is_left_as_it_was():
    plain, lessons = curved()
    noisy, _ = curved(dropout=0.5)
    noisy.module.float().train()
    noisy.module[0].weight.requires_grad_(False)
    before = weights(noisy)
    start = weights(plain)
    found = theorem(noisy, lessons, rate=0.1, start=start, optimisers=("gd",))
    assert found.rows == theorem(plain, lessons, rate=0.1, optimisers=("gd",)).rows
    assert distance(weights(noisy), before) == 0 and noisy.module[0].weight.dtype == torch.float32
    assert noisy.module.training and not noisy.module[0].weight.requires_grad
    assert all(p.grad is None for p in noisy.module.parameters())


def test_the_result_is_plain_data_and_progress_ends_at_its_total():
    seen: list[tuple[int, int]] = []
    found = theorem(*curved(), steps=(2, 1, 2), progress=lambda done, total, text: seen.append((done, total)))
    said = json.loads(json.dumps(found.to_dict()))
    assert said["steps"] == [1, 2] and said["parameters"] == 5 * 8 + 8 + 8 * 4 + 4
    assert len(said["rows"]) == 5 * 2 and said["base"]["accuracy"] is None
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1)) and {total for _, total in seen} == {len(seen)}


WRONG = {
    "no step": ({"steps": ()}, "steps"),
    "half a step": ({"steps": (1, 0)}, "steps"),
    "an unknown optimiser": ({"optimisers": ("adm",)}, "'adam"),
    "no optimiser": ({"optimisers": ()}, "optimiser"),
    "no rate": ({"rate": 0.0}, "rate"),
    "no rate for Adam": ({"adam_rate": 0.0}, "rate"),
    "a rate that is no number": ({"rate": math.nan}, "rate"),
    "an empty batch": ({"batch": 0}, "batch"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_numbers_are_named(case: str):
    changes, named = WRONG[case]
    with pytest.raises(MergeLabError, match=named):
        theorem(*curved(), **changes)


def test_a_loss_without_gradient_is_named():
    learner, (first, *_) = curved()
    flat = Lesson("flat", first.inputs, first.labels, Head(torch.zeros(3, 4)))
    with pytest.raises(MergeLabError, match="flat has no gradient"):
        theorem(learner, [first, flat])


def test_divergence_is_said():
    learner, lessons = curved()
    tall = [Lesson(x.task, 1e160 * x.inputs, x.labels, x.head) for x in lessons]
    rough = Learner(nn.Sequential(nn.Linear(5, 4)).double(), learner.features)
    with pytest.raises(MergeLabError, match="Lower the rate"):
        theorem(rough, tall, rate=50.0, optimisers=("gd",))


def test_it_can_be_stopped():
    stop = Stop()
    with pytest.raises(Cancelled):
        theorem(*curved(), stop=stop, progress=lambda done, total, text: stop.set())
