"""Which unlabelled pictures are drawn: fixed, nested, without labels; batches pass over all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training.learn_zoo import moved_zoo

from mergelab.errors import TaskError
from mergelab.models import build
from mergelab.tasks import load_suite
from mergelab.training import unlabelled
from mergelab.training.inputs import Draws, data_used, drawn


def test_a_draw_is_fixed_by_its_seed_and_a_smaller_one_is_part_of_a_larger() -> None:
    small, large = drawn(100, 10, 0, "a/val"), drawn(100, 30, 0, "a/val")
    assert torch.equal(small, drawn(100, 10, 0, "a/val")) and set(small.tolist()) < set(large.tolist())
    assert small.tolist() == sorted(small.tolist()) and len(set(large.tolist())) == 30
    assert not torch.equal(small, drawn(100, 10, 1, "a/val")) and not torch.equal(small, drawn(100, 10, 0, "b/val"))
    assert drawn(5, None, 0, "a").tolist() == drawn(5, 9, 0, "a").tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(TaskError, match="at least one example a task, not 0"):
        drawn(5, 0, 0, "a")


def test_batches_hold_nothing_twice_and_come_round_to_everything() -> None:
    draws = Draws(10, 4, 0, "a")
    first, second, third = (draws.next().tolist() for _ in range(3))
    assert len({*first, *second}) == 8 and all(len(set(batch)) == 4 for batch in (first, second, third))
    seen = {place for _ in range(200) for place in draws.next().tolist()}
    assert seen == set(range(10))
    assert sorted(Draws(3, 16, 0, "a").next().tolist()) == [0, 1, 2]
    assert torch.equal(Draws(10, 4, 0, "a").next(), Draws(10, 4, 0, "a").next())
    assert any(Draws(10, 4, 0, "a").next().tolist() != Draws(10, 4, seed, "a").next().tolist() for seed in range(1, 5))


def test_pictures_come_with_the_heads_of_their_tasks(tmp_path: Path) -> None:
    zoo = moved_zoo(tmp_path / "tiny")
    model, suite = build(str(zoo / "base"), device="cpu"), load_suite(zoo)
    grey, colour = unlabelled(model, suite, ("grey", "colour"), examples=7)
    assert (grey.task, colour.task) == ("grey", "colour") and len(grey.images) == 7
    assert grey.head.classes == 3 and colour.head.classes == 4 and grey.split == "val"
    pictures = suite["grey"].split("val")[0]
    assert all(any(torch.equal(one, other) for other in pictures) for one in grey.images)
    with pytest.raises(TaskError, match="come from 'val' or 'test', not 'train'"):
        unlabelled(model, suite, ("grey",), split="train")


def test_words_say_how_many_and_from_where() -> None:
    assert data_used({"a": 5, "b": 5}, "val") == "5 unlabelled val pictures a task of a, b"
    said = data_used({"a": 5, "b": 9}, "test")
    assert said.startswith("5 to 9 unlabelled test pictures a task of a, b (transductive")
