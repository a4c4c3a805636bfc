"""Suites: splits, the held-out part, fixed subsets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mergelab.errors import TaskError
from mergelab.tasks import load_suite, subset, subset_indices
from mergelab.tasks.suite import balanced, hold_out


@pytest.fixture
def suite(tmp_path):
    rng = np.random.RandomState(0)
    y = np.repeat(np.arange(4), [50, 30, 19, 1])
    rng.shuffle(y)
    x = np.arange(100, dtype=np.uint8)[:, None, None] * np.ones((1, 8, 8), np.uint8)  # a picture tells its place
    np.savez(tmp_path / "t.npz", x_train=x, y_train=y, x_test=x[:60], y_test=y[:60], classes=np.array(list("abcd")))
    return load_suite(tmp_path)


def test_held_out_validation_and_training_are_the_whole_and_disjoint(suite):
    task = suite["t"]
    places = {split: task.split(split)[0][:, 0, 0, 0].tolist() for split in ("train", "val")}
    assert sorted(places["train"] + places["val"]) == list(range(100))
    counts = torch.bincount(task.split("val")[1], minlength=4).tolist()
    assert counts == [8, 4, 3, 0]  # 15 % of 50, 30, 19 and of a class with a single item
    again = load_suite(suite.folder)["t"].split("val")[0]
    assert torch.equal(again, task.split("val")[0])


def test_grey_pictures_come_as_three_equal_channels(suite):
    images, labels = suite["t"].split("test")
    assert (images.shape, images.dtype, labels.dtype) == ((60, 8, 8, 3), torch.uint8, torch.int64)
    assert torch.equal(images[..., 0], images[..., 2])


def test_subsets_are_balanced_fixed_and_nested(suite):
    task = suite["t"]
    small, large = subset_indices(task, "test", 12), subset_indices(task, "test", 24)
    assert set(small.tolist()) < set(large.tolist())
    assert torch.equal(small, subset_indices(load_suite(suite.folder)["t"], "test", 12))
    assert not torch.equal(small, subset_indices(task, "test", 12, seed=1))
    images, labels = subset(task, "test", 12)
    assert torch.equal(labels, task.split("test")[1][small])
    assert torch.equal(images, task.split("test")[0][small])
    assert len(subset_indices(task, "test", 10_000)) == 60


def test_balance_is_as_even_as_the_data_allow():
    labels = torch.tensor([0] * 50 + [1] * 3 + [2] * 20)
    counts = torch.bincount(labels[balanced(labels, 15, seed=3)]).tolist()
    assert counts == [6, 3, 6]
    assert sorted(torch.bincount(labels[balanced(labels, 4, seed=3)]).tolist()) == [1, 1, 2]
    with pytest.raises(TaskError):
        balanced(labels, 0, seed=0)


def test_every_class_with_two_items_is_in_both_parts():
    labels = torch.tensor([0, 0, 1, 1, 1, 2])
    held, rest = hold_out(labels, "x")
    assert set(labels[held].tolist()) == {0, 1}
    assert set(labels[rest].tolist()) == {0, 1, 2}


def test_lengths_must_agree(tmp_path):
    np.savez(tmp_path / "t.npz", x_test=np.zeros((3, 8, 8), np.uint8), y_test=np.zeros(2, np.uint8),
             classes=np.array(["a", "b"]))  # fmt: skip
    with pytest.raises(TaskError, match="x_test has 3 pictures and y_test has 2 labels"):
        load_suite(tmp_path)["t"].split("test")
    with pytest.raises(TaskError, match="no 'x_train'"):
        load_suite(tmp_path)["t"].split("val")


def test_a_zoo_is_found_by_name_folder_and_suite_folder(zoo, monkeypatch, tmp_path):
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "tiny").symlink_to(zoo, target_is_directory=True)
    monkeypatch.setenv("MERGELAB_ASSETS", str(tmp_path))
    for source in ("tiny", "zoo:tiny", zoo, str(zoo), zoo / "suite"):
        suite = load_suite(source)
        assert (suite.name, suite.names, suite.zoo) == ("tiny", ("grey", "colour", "stripes"), zoo)
    with pytest.raises(TaskError, match=r"no suite 'tinny'. Did you mean 'tiny'"):
        load_suite("tinny")
