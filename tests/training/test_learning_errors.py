"""What AdaMerging and Surgery refuse about models and unlabelled data, word for word as the catalogue of MaTS's errors
(tests/engine/test_data_errors.py): missing and empty data, weights of zero, equal models, what diverges."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from training.learn_zoo import WIDTH, toy

import mergelab
from mergelab.engine import plan as planning
from mergelab.errors import CheckpointError, MergeLabError, MethodError, TaskError
from mergelab.tasks import Head
from mergelab.training.adamerging import Settings, learn
from mergelab.training.surgery import SurgerySettings, fit, operate

ONCE = Settings(steps=1, batch=4, rate=0.01)
QUICK = SurgerySettings(rank=4, steps=1)


@pytest.fixture(scope="module")
def made() -> tuple[Any, Any, list[Any]]:
    return toy(2)


def broken(inputs: list[Any]) -> list[Any]:
    """The second task's head overflows."""
    return [inputs[0], replace(inputs[1], head=replace(inputs[1].head, weight=inputs[1].head.weight * math.inf))]


def empty(inputs: list[Any]) -> list[Any]:
    return [inputs[0], replace(inputs[1], images=inputs[1].images[:0])]


def equal(plan: Any) -> Any:
    """Both experts are the base."""
    base = dict(plan.base)
    return planning("adamerging", {name: {k: t.clone() for k, t in base.items()} for name in plan.names}, base)


def operated(model: Any, plan: Any, inputs: list[Any], **more: Any) -> Any:
    experts = more.pop("experts", dict(zip(plan.names, plan.models, strict=True)))
    return operate(model, plan.base, experts, inputs, QUICK, weights_hash="a" * 64, **more).surgery


ROWS: list[tuple[str, Callable[[Any, Any, Any], Any], type[MergeLabError], str]] = [
    ("1 zero weights", lambda m, p, i: learn(m, p.with_parameters({"weight": 0.0}), i, ONCE), MethodError,
     "Parameter 'weight' of 'adamerging' is 0 for every model, so there is nothing to learn from; give at least one "
     "task a weight above 0."),
    ("3 no coefficients", lambda m, p, i: mergelab.merge("adamerging", dict(zip(p.names, p.models, strict=True)),
                                                         p.base), MethodError,
     "Method 'adamerging' has no learned coefficients for tensor '{first}'; merge a recipe with a suite to learn them "
     "first, or give the file of an earlier run."),
    ("6 adapters' vectors", lambda m, p, i: learn(m, replace(p, space="adapter"), i, ONCE), MethodError,
     "Method 'adamerging' learns coefficients of weights, but the recipe merges adapters' own vectors; leave 'space' "
     "out."),
    ("7 a task without inputs", lambda m, p, i: learn(m, p, i[:1], ONCE), MethodError,
     "There are no inputs of the task 't1' to learn from; give some for every model."),
    ("7 a task without pictures", lambda m, p, i: learn(m, p, empty(i), ONCE), MethodError,
     "There is no picture of the task 't1' to learn from; give some for every model."),
    ("9 experts that are the base", lambda m, p, i: learn(m, equal(p), i, ONCE), MergeLabError,
     "The models equal their base in every tensor that {model} runs, so there is nothing to learn."),
    ("10 what is not finite", lambda m, p, i: learn(m, p, broken(i), ONCE), MergeLabError,
     "AdaMerging diverged: the entropy of t1 is nan at step 1. Lower the rate 0.01, or keep coefficients between 0 and "
     "1 (clamp: project)."),
    ("surgery, no expert", lambda m, p, i: operated(m, p, i, experts={"t0": p.models[0]}), TaskError,
     "The task t1 has no expert to correct towards; give its checkpoint."),
    ("surgery, two splits", lambda m, p, i: operated(m, p, [i[0], replace(i[1], split="test")]), TaskError,
     "All inputs of one surgery must come from the same split."),
    ("surgery, a rank of 0", lambda m, p, i: SurgerySettings(rank=0), MergeLabError,
     "Surgery needs a rank and a batch of at least 1, steps from 0 and a rate above 0."),
    ("surgery, what is not finite", lambda m, p, i: fit(torch.full((4, 8), math.inf), torch.zeros(4, 8), QUICK, "t0"),
     MergeLabError, "The surgery of t0 diverged. Lower the rate 0.001."),
    ("surgery of other weights", lambda m, p, i: operated(m, p, i).check("b" * 64, WIDTH, "merged"), CheckpointError,
     "The surgery belongs to weights aaaaaaaaaaaa, merged has bbbbbbbbbbbb; run `mergelab surgery` on this model."),
    ("surgery of another width", lambda m, p, i: operated(m, p, i).check("a" * 64, 5, "merged"), CheckpointError,
     f"The surgery corrects features of width {WIDTH}, merged gives 5; use the surgery of this merged model."),
    ("surgery, a head of another width", lambda m, p, i: operated(m, p, i).heads({"t0": Head(torch.ones(3, 5))}),
     TaskError, f"The correction is for features of width {WIDTH}, the head takes 5. Use the surgery of this merged "
     "model."),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "sentence"), [r[1:] for r in ROWS], ids=[r[0] for r in ROWS])
def test_a_clause_about_learning(
    made: Any, call: Callable[[Any, Any, Any], Any], error: type[MergeLabError], sentence: str
) -> None:
    model, plan, inputs = made
    with pytest.raises(error) as caught:
        call(model, plan, inputs)
    first = next(item.name for item in plan.items if item.merge)
    assert str(caught.value) == sentence.format(first=first, model=model.name)
    assert type(caught.value) is error


def test_the_models_of_those_rows_are_good_before(made: Any) -> None:
    model, plan, inputs = made
    assert learn(model, plan, inputs, ONCE).models == ("t0", "t1")
    assert set(operated(model, plan, inputs).corrections) == {"t0", "t1"}
