"""The trainer against hand-made gradient descent: single tasks, several together, gradient surgery, going on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from training import toys

from mergelab.errors import Cancelled, MergeLabError, TaskError
from mergelab.progress import Stop
from mergelab.tasks import Head
from mergelab.training.learner import Lesson
from mergelab.training.order import Order
from mergelab.training.trainer import Trainer
from mergelab.training.tuning import Tuning

GD = Tuning(optimiser="gd", rate=0.1, clip=None, batch=5, precision="float32")


def start_of(made: object, lesson: Lesson) -> dict[str, Tensor]:
    return made.state(made.look(lesson))  # type: ignore[attr-defined]


def close(one: dict[str, Tensor], other: dict[str, Tensor], atol: float = 1e-12) -> None:
    assert set(one) == set(other)
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=atol)


def trained(tuning: Tuning, lessons: list[Lesson], steps: int, combine: str = "mean", **options: object) -> dict:
    made = toys.learner()
    start = start_of(made, lessons[0])
    with Trainer(made, lessons, tuning, start, total=steps, combine=combine, **options) as trainer:  # type: ignore[arg-type]
        trainer.run(0, steps)
        return trainer.state()


def test_only_what_the_features_read_is_trained():
    made = toys.learner()
    assert made.look(toys.lessons()[0]) == ("0.weight", "0.bias", "3.weight", "3.bias")


def test_a_full_batch_step_is_a_step_down_the_gradient_whatever_the_batch():
    lesson = toys.lessons()[0]
    made = toys.learner()
    start = start_of(made, lesson)
    expected = {n: start[n] - 0.1 * g for n, g in toys.gradient(made, lesson, start).items()}
    for batch in (1, 5, 12, 100):
        close(trained(Tuning(optimiser="gd", rate=0.1, clip=None, batch=batch), [lesson], 1), expected)


def test_joint_training_goes_down_the_mean_of_the_tasks_losses():
    lessons = toys.lessons((12, 7, 3))  # each task counts alike, however many items it has
    made = toys.learner()
    now = start_of(made, lessons[0])
    for _ in range(4):
        grads = [toys.gradient(made, lesson, now) for lesson in lessons]
        now = {n: now[n] - 0.1 * sum(g[n] for g in grads) / 3 for n in now}
    close(trained(GD, lessons, 4), now)


def test_gradient_surgery_of_two_opposed_tasks_is_the_formula():
    lessons = toys.lessons((12, 12))
    made = toys.learner()
    start = start_of(made, lessons[0])
    one, two = (toys.gradient(made, lesson, start) for lesson in lessons)
    flat = [torch.cat([g[n].flatten() for n in start]) for g in (one, two)]
    if flat[0] @ flat[1] >= 0:  # make them disagree: the second task gets the first one's data under turned labels
        lessons[1] = Lesson("t1", lessons[0].inputs, (lessons[0].labels + 1) % toys.CLASSES, lessons[0].head)
        one, two = (toys.gradient(made, lesson, start) for lesson in lessons)
        flat = [torch.cat([g[n].flatten() for n in start]) for g in (one, two)]
    dot = flat[0] @ flat[1]
    assert dot < 0
    first = flat[0] - dot / (flat[1] @ flat[1]) * flat[1]
    second = flat[1] - dot / (flat[0] @ flat[0]) * flat[0]
    expected = torch.cat([start[n].flatten() for n in start]) - 0.1 * (first + second) / 2
    found = trained(GD, lessons, 1, combine="pcgrad")
    torch.testing.assert_close(torch.cat([found[n].flatten() for n in start]), expected, rtol=0, atol=1e-12)


def test_gradient_surgery_of_tasks_that_agree_changes_nothing():
    lesson = toys.lessons()[0]
    twice = [lesson, Lesson("other", lesson.inputs, lesson.labels, lesson.head)]
    close(trained(GD, twice, 3, combine="pcgrad"), trained(GD, [lesson], 3))


def test_clipping_shortens_a_step_to_the_limit():
    lesson = toys.lessons()[0]
    made = toys.learner()
    start = start_of(made, lesson)
    tuning = Tuning(optimiser="gd", rate=1.0, clip=0.01, batch=12)
    moved = trained(tuning, [lesson], 1)
    length = torch.cat([(moved[n] - start[n]).flatten() for n in start]).norm()
    assert float(length) == pytest.approx(0.01, rel=1e-3)


def test_weight_decay_is_decoupled():
    lesson = toys.lessons()[0]
    made = toys.learner()
    start = start_of(made, lesson)
    plain = trained(Tuning(rate=0.01, weight_decay=0.0, batch=12, clip=None), [lesson], 1)
    decayed = trained(Tuning(rate=0.01, weight_decay=0.5, batch=12, clip=None), [lesson], 1)
    close(decayed, {n: plain[n] - 0.01 * 0.5 * start[n] for n in start}, 1e-10)


def test_a_saved_trainer_goes_on_to_the_same_bits():
    """With dropout and Adam's moments: what was drawn does not depend on where the run was cut."""
    tuning = Tuning(rate=0.01, batch=5, schedule="cosine", warmup=0.2)
    lessons = toys.lessons()

    def made() -> tuple[object, dict[str, Tensor]]:
        learner = toys.learner(dropout=0.3)
        return learner, start_of(learner, lessons[0])

    learner, start = made()
    with Trainer(learner, lessons, tuning, start, total=12) as trainer:  # type: ignore[arg-type]
        trainer.run(0, 12)
        whole = trainer.state()
    learner, start = made()
    with Trainer(learner, lessons, tuning, start, total=12) as trainer:  # type: ignore[arg-type]
        trainer.run(0, 6)
        saved = {name: tensor.clone() for name, tensor in trainer.saved().items()}
    torch.manual_seed(12345)  # another process
    learner, start = made()
    with Trainer(learner, lessons, tuning, start, total=12) as trainer:  # type: ignore[arg-type]
        trainer.restore(saved)
        trainer.run(6, 12)
        resumed = trainer.state()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


def test_trained_heads_are_trained_and_stay_with_their_task():
    lessons = toys.lessons(dtype=torch.float32)
    made = toys.learner(torch.float32)
    start = start_of(made, lessons[0])
    tuning = Tuning(optimiser="sgd", rate=0.1, head_rate=0.1, heads="trained", batch=12, clip=None)
    with Trainer(made, lessons, tuning, start, total=1) as trainer:
        trainer.run(0, 1)
        heads = trainer.heads()
    for lesson in lessons:
        inputs = toys.learner(torch.float32)
        features = inputs.features(inputs.module, lesson.inputs)
        weight = lesson.head.weight.clone().requires_grad_(True)
        torch.nn.functional.cross_entropy(features.detach() @ weight.T, lesson.labels).backward()
        torch.testing.assert_close(heads[lesson.task].weight, lesson.head.weight - 0.1 * weight.grad / 3)


def test_epochs_show_every_item_once_and_steps_whole_batches():
    order = Order("a", 10, per_epoch=3, seed=4)
    for epoch in range(2):
        seen = torch.cat([order.places(3 * epoch + i) for i in range(3)])
        assert sorted(seen.tolist()) == list(range(10))
    around = Order("a", 10, per_epoch=3, seed=4, batch=4)
    seen = torch.cat([around.places(i) for i in range(5)])  # twenty draws: every item twice
    assert [len(around.places(i)) for i in range(5)] == [4] * 5
    assert sorted(seen.tolist()) == sorted(list(range(10)) * 2)


def test_what_an_epoch_says_is_what_happened():
    lesson = toys.lessons()[0]
    made = toys.learner()
    start = start_of(made, lesson)
    grads = toys.gradient(made, lesson, start)
    norm = float(torch.cat([g.flatten() for g in grads.values()]).norm())
    with Trainer(made, [lesson], GD, start, total=1) as trainer:
        (epoch,) = trainer.run(0, 1)
    assert epoch.norm == pytest.approx(norm, rel=1e-9)
    assert epoch.moved == pytest.approx(0.1 * norm, rel=1e-9)
    assert epoch.samples == 12
    scores = toys.learner().module(lesson.inputs).detach() @ lesson.head.weight.T
    expected = float(torch.nn.functional.cross_entropy(scores, lesson.labels))
    assert epoch.losses["t0"] == pytest.approx(expected, rel=1e-6)


def test_stop_ends_between_two_steps():
    made, lesson = toys.learner(), toys.lessons()[0]
    stop = Stop()
    stop.set()
    with Trainer(made, [lesson], GD, start_of(made, lesson)) as trainer, pytest.raises(Cancelled):
        trainer.run(0, 1, stop=stop)


def test_divergence_is_a_sentence():
    made, lesson = toys.learner(), toys.lessons()[0]
    tuning = Tuning(optimiser="gd", rate=1e2, clip=None, batch=12)
    huge = Lesson("t0", lesson.inputs * 1e200, lesson.labels, Head(lesson.head.weight * 1e200))
    with (
        Trainer(made, [huge], tuning, start_of(made, lesson), total=3) as trainer,
        pytest.raises(MergeLabError, match=r"Training on t0 diverged: its loss is inf\. Lower the rate 100"),
    ):
        trainer.run(0, 3)


def test_labels_that_do_not_fit_are_named():
    lesson = toys.lessons()[0]
    with pytest.raises(TaskError, match="The labels of t0 go from 0 to 9, but its head has 3 classes"):
        Lesson("t0", lesson.inputs, torch.tensor([0] * 11 + [9]), lesson.head)
    with pytest.raises(TaskError, match=r"12 labels for \[5\] inputs"):
        Lesson("t0", lesson.inputs[:5], lesson.labels, lesson.head)
