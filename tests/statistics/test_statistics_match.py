"""Which statistics belong to which model: by the hash of the weights, and not by name alone."""

from __future__ import annotations

import pytest
import torch

from mergelab.checkpoints import Checkpoint, load
from mergelab.errors import StatisticsError
from mergelab.statistics import Block, TaskStatistics, matched

BLOCK = Block(torch.eye(2), torch.eye(2)[None], torch.ones(2, 2), rows=1, examples=1, layout="linear")


def model(value: float) -> Checkpoint:
    return load({"w": torch.full((2, 2), value)})


def of(task: str, weights: Checkpoint | None, **more: object) -> TaskStatistics:
    said = {"weights_hash": weights.weights_hash if weights else "", "fisher": "exact", "split": "val", "examples": 5}
    return TaskStatistics(task, {"w": BLOCK}, **{**said, **more})


def test_the_hash_wins_over_the_name():
    one, two = model(1), model(2)
    found = {"a": of("a", two), "b": of("b", one)}
    taken = matched(found, {"first": one, "second": two}, ["kfac"])
    assert taken == {"first": found["b"], "second": found["a"]} and taken.warnings == ()


def test_of_several_of_the_same_weights_the_name_decides():
    same = model(1)
    found = {"a": of("a", same), "b": of("b", same)}
    assert matched(found, {"b": same}, ["gram"])["b"] is found["b"]
    with pytest.raises(StatisticsError) as caught:
        matched(found, {"c": same}, ["gram"])
    assert str(caught.value) == (
        "The model 'c' has the weights of 2 statistics, of the tasks a, b: name the model after one of them."
    )


def test_a_name_that_fits_with_other_weights_is_refused_with_both_hashes():
    old, new = model(1), model(2)
    with pytest.raises(StatisticsError) as caught:
        matched({"mnist": of("mnist", old)}, {"mnist": new}, ["gram"])
    assert str(caught.value) == (
        "The statistics of 'mnist': they were collected from other weights than the model 'mnist' has: their hash is "
        f"{old.weights_hash[:12]}, the model's {new.weights_hash[:12]}. Collect them again from it."
    )


def test_statistics_that_do_not_know_their_weights_go_by_name():
    found = {"mnist": of("mnist", None)}
    assert matched(found, {"mnist": model(3)}, ["gram"])["mnist"] is found["mnist"]
    with pytest.raises(StatisticsError, match=r"no statistics of the model 'svhn': there are some of mnist\."):
        matched(found, {"svhn": model(3)}, ["gram"])


def test_a_missing_kind_says_what_there_is_and_the_command():
    grams = TaskStatistics("a", {"w": BLOCK.only(["gram"])})
    with pytest.raises(StatisticsError) as caught:
        matched({"a": grams}, {"a": model(1)}, ["gram", "kfac", "diag"])
    assert str(caught.value) == (
        "The statistics of 'a': they hold only gram, and the model 'a' needs diag, kfac; collect them again with "
        "--kinds gram,diag,kfac."
    )


def test_mixed_statistics_are_used_and_said():
    one, two = model(1), model(2)
    found = {"a": of("a", one), "b": of("b", two, fisher="sampled", split="train", examples=7)}
    warnings = matched(found, {"a": one, "b": two}, ["kfac"]).warnings
    assert warnings == (
        "The statistics mix Fisher estimates (exact for a; sampled for b): their scales differ, and so do the tasks' "
        "weights.",
        "The statistics mix data splits (val for a; train for b): not all tasks were seen alike.",
        "The statistics mix numbers of examples (5 for a; 7 for b): the larger are the better known.",
    )
    grams = matched(found, {"a": one, "b": two}, ["gram"]).warnings
    assert not any("Fisher" in warning for warning in grams), "Grams have no labels to draw"
