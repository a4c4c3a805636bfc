"""Alternating tuning and merging against what it must equal: averaging, joint descent; streaming; divergence."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from training import toys

import mergelab
from mergelab.errors import MergeLabError, MethodError, RecipeError
from mergelab.training.aggregate import Aggregation, running_mean
from mergelab.training.atm import Tuned, check, rounds
from mergelab.training.recipe import TrainRecipe
from mergelab.training.trainer import Trainer
from mergelab.training.tuning import Tuning

GD = Tuning(optimiser="gd", rate=0.1, clip=None, batch=12, precision="float32")


def alternating(tuning: Tuning, count: int, steps: int, aggregation: Aggregation | None = None) -> dict[str, Tensor]:
    """``count`` rounds of ``steps`` steps over three tasks."""
    lessons, made = toys.lessons(), toys.learner()
    base = made.state(made.look(lessons[0]))

    def tune(number: int, now: Mapping[str, Tensor]) -> Iterator[Tuned]:
        for lesson in lessons:
            with Trainer(made, [lesson], tuning, now, total=count * steps) as trainer:
                trainer.run((number - 1) * steps, number * steps)
                yield Tuned(lesson.task, trainer.state(), {"start_loss": 1.0})

    *_, last = rounds(base, tune, aggregation or Aggregation(), last=count)
    return last.base


def experts(tuning: Tuning, steps: int) -> dict[str, dict[str, Tensor]]:
    out = {}
    for lesson in toys.lessons():
        made = toys.learner()
        with Trainer(made, [lesson], tuning, made.state(made.look(lesson)), total=steps) as trainer:
            trainer.run(0, steps)
            out[lesson.task] = trainer.state()
    return out


def base() -> dict[str, Tensor]:
    made = toys.learner()
    return made.state(made.look(toys.lessons()[0]))


def close(one: Mapping[str, Tensor], other: Mapping[str, Tensor], atol: float = 1e-12) -> None:
    assert set(one) == set(other)
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=atol)


def test_one_round_of_the_mean_is_the_average_of_the_experts():
    found = experts(GD, 5)
    average = {n: sum(state[n] for state in found.values()) / 3 for n in base()}
    close(alternating(GD, 1, 5), average)


def test_one_gradient_step_a_round_is_joint_descent():
    lessons = toys.lessons()
    made = toys.learner()
    with Trainer(made, lessons, GD, base(), total=8) as trainer:
        trainer.run(0, 8)
        joint = trainer.state()
    close(alternating(GD, 8, 1), joint, 1e-9)


def test_one_step_of_a_batch_a_round_is_joint_training_with_the_same_batches():
    """Merging after every step of SGD is joint training: both see, step by step, the same items."""
    tuning = Tuning(optimiser="sgd", rate=0.1, clip=None, batch=5, precision="float32")
    made = toys.learner()
    with Trainer(made, toys.lessons(), tuning, base(), total=9) as trainer:
        trainer.run(0, 9)
        joint = trainer.state()
    close(alternating(tuning, 9, 1), joint, 1e-9)


def test_more_steps_a_round_are_not():
    made = toys.learner()
    with Trainer(made, toys.lessons(), GD, base(), total=8) as trainer:
        trainer.run(0, 8)
        joint = trainer.state()
    apart = alternating(GD, 1, 8)
    assert max(float((apart[n] - joint[n]).abs().max()) for n in joint) > 1e-4


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.7])
def test_the_scale_goes_that_far_towards_the_aggregate(alpha: float):
    whole, start = alternating(GD, 1, 3), base()
    scaled = alternating(GD, 1, 3, Aggregation(scale=alpha))
    close(scaled, {n: start[n] + alpha * (whole[n] - start[n]) for n in start})


@pytest.mark.parametrize(
    ("method", "parameters"),
    [("task_arithmetic", {"lambda": 0.3}), ("ties", {"density": 0.5}), ("dare_linear", {}), ("breadcrumbs", {}),
     ("tsv_m", {}), ("pcgrad", {})],
)  # fmt: skip
def test_any_static_method_merges_a_round(method: str, parameters: dict[str, Any]):
    found, start = experts(GD, 4), base()
    merged = mergelab.merge(method, found, start, seed=1, dtype="float64", **{
        "lambda_" if k == "lambda" else k: v for k, v in parameters.items()})  # fmt: skip
    close(alternating(GD, 1, 4, Aggregation(method, parameters)), merged)


def test_a_method_that_needs_data_is_refused():
    with pytest.raises(MethodError, match="cannot be merged by 'regmean', which needs data of its own"):
        Aggregation("regmean")
    with pytest.raises(MethodError, match="The mean of the experts has no parameters"):
        Aggregation("mean", {"weight": 1.0})


@pytest.mark.parametrize(
    ("aggregation", "more", "word"),
    [
        ({"merge_method": "ties", "parameters": {"desnity": 0.2}}, {}, "aggregation: .*desnity.*density"),
        ({"merge_method": "ties", "parameters": {"density": 7.0}}, {}, "aggregation: .*'density'"),
        ({"merge_method": "ties", "parameters": {"density": [0.1, 0.2]}}, {}, "aggregation: .*density"),
        ({"merge_method": "slerp"}, {}, "merges exactly 2 models, but 3 are given"),
        ({"merge_method": "slerp"}, {"join": {"c": 2}}, "aggregation at round 2, where 3 tasks take part"),
    ],
)
def test_a_round_that_could_not_be_merged_is_refused_before_anything_is_trained(aggregation, more, word):
    recipe = {"train": "atm", "base_model": "b", "suite": "s", "aggregation": aggregation, **more}
    with pytest.raises(RecipeError, match=word):
        TrainRecipe.from_dict({**recipe, "tasks": ["a", "b", "c"]})
    if not more:  # joining tasks need their names
        with pytest.raises(RecipeError, match=word):
            TrainRecipe.from_dict(recipe).check_merges(["a", "b", "c"])


def test_the_running_mean_is_the_mean_and_holds_one_expert():
    class Held(dict):  # a dict that can be watched
        pass

    alive: list[weakref.ref[Any]] = []
    most = 0

    def arriving() -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        nonlocal most
        for i in range(6):
            state = Held(w=torch.full((1000,), float(i), dtype=torch.float64))
            alive.append(weakref.ref(state))
            yield str(i), state
            del state
            gc.collect()
            most = max(most, sum(ref() is not None for ref in alive))

    merged = running_mean(arriving())
    assert torch.equal(merged["w"], torch.full((1000,), 2.5, dtype=torch.float64))
    assert most <= 1
    with pytest.raises(MethodError, match="no expert"):
        running_mean(iter(()))


def test_rounds_that_diverge_stop_with_a_sentence():
    lessons, made = toys.lessons(), toys.learner()
    start = made.state(made.look(lessons[0]))
    losses = iter([1.0, 0.8, 0.9, 1.1, 1.3])

    def tune(number: int, now: Mapping[str, Tensor]) -> Iterator[Tuned]:
        loss = next(losses)
        for lesson in lessons:
            yield Tuned(lesson.task, dict(now), {"start_loss": loss})

    seen = []
    with pytest.raises(MergeLabError, match=r"rose twice running \(0.8, 0.9, 1.1 before round 4\)"):
        for found in rounds(start, tune, Aggregation(), last=5):
            seen.append(found.number)
    assert seen == [1, 2, 3]


def test_small_noise_near_the_end_is_no_divergence():
    check([{"a": loss} for loss in (2.0, 0.010, 0.011, 0.012)], 4)
    check([{"a": loss} for loss in (2.0, 0.5, 0.6, 0.7)], 4)  # still far below where it began
    check([{"a": 1.0}, {"a": 0.9, "b": 9.0}, {"a": 0.8, "b": 9.5}], 3)  # a task that joined is no rise
    with pytest.raises(MergeLabError, match="starts from a loss of nan"):
        check([{"a": 1.0}, {"a": float("nan")}], 2)
