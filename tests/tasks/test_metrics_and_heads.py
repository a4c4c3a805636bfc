"""Intervals that cover what they claim, and heads against direct computation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mergelab.errors import TaskError
from mergelab.tasks import Head, Task, bootstrap_interval, class_mean_head, load_head
from mergelab.tasks.head import check_head, fill
from mergelab.tasks.metrics import mean, normalised


@pytest.mark.parametrize(("k", "n"), [(400, 1000), (870, 1000), (5000, 10_000)])
def test_interval_is_the_normal_approximation_for_many_items(k, n):
    p = k / n
    half = 1.959964 * math.sqrt(p * (1 - p) / n)
    low, high = bootstrap_interval([True] * k + [False] * (n - k))
    assert low == pytest.approx(p - half, abs=0.002)
    assert high == pytest.approx(p + half, abs=0.002)


def test_interval_is_near_wilsons_for_few_items():
    k, n, z = 30, 40, 1.959964
    centre, half = (k + z * z / 2) / (n + z * z), z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
    low, high = bootstrap_interval([True] * k + [False] * (n - k))
    assert low == pytest.approx(centre - half, abs=0.04)
    assert high == pytest.approx(centre + half, abs=0.04)


def test_interval_is_that_of_resampling_items_one_by_one():
    correct = np.arange(25) % 5 != 0
    rng = np.random.RandomState(5)
    means = [correct[rng.randint(0, 25, 25)].mean() for _ in range(8000)]
    expected = np.quantile(means, [0.025, 0.975])
    assert bootstrap_interval(correct) == (pytest.approx(expected[0], abs=0.021), pytest.approx(expected[1], abs=0.021))


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.RandomState(1)
    covered = 0
    for trial in range(300):
        low, high = bootstrap_interval(rng.rand(200) < 0.8, seed=trial)
        covered += low <= 0.8 <= high
    assert 0.90 <= covered / 300 <= 0.99


def test_all_right_still_has_an_interval():
    low, high = bootstrap_interval([True] * 40)
    assert high == 1
    assert low**40 == pytest.approx(0.025)  # the p for which 40 of 40 is just as rare as 2.5 %
    assert bootstrap_interval([False] * 40) == (0, pytest.approx(1 - low))


def test_same_seed_same_interval():
    assert bootstrap_interval([True, False] * 30, 4) == bootstrap_interval(torch.tensor([True, False] * 30), 4)


def test_mean_of_ratios_and_missing_numbers():
    assert mean([normalised(0.8, 0.8), normalised(0.3, 0.6)]) == pytest.approx(0.75)
    assert (mean([1.0, None]), mean([]), normalised(0.5, 0.0), normalised(0.5, None)) == (None, None, None, None)


def test_linear_head_is_a_linear_layer():
    layer = torch.nn.Linear(6, 4)
    features = torch.randn(5, 6)
    head = Head(layer.weight.detach(), layer.bias.detach())
    torch.testing.assert_close(head.logits(features), layer(features).detach())


def test_normalising_head_scores_scaled_cosines():
    features, rows = torch.randn(5, 6), torch.nn.functional.normalize(torch.randn(4, 6), dim=-1)
    expected = 7 * torch.cosine_similarity(features[:, None], rows[None], dim=-1)
    torch.testing.assert_close(Head(rows, scale=7.0, normalize=True).logits(features), expected)


def test_class_means_by_hand():
    features = torch.tensor([[2.0, 0.0], [0.0, 3.0], [0.0, -1.0]])
    head = class_mean_head(features, torch.tensor([0, 0, 2]), 4)
    half = math.sqrt(0.5)
    torch.testing.assert_close(head.weight[[0, 2]], torch.tensor([[half, half], [0.0, -1.0]]))
    scores = head.logits(torch.tensor([[-1.0, -1.0], [5.0, 1.0]]))
    assert scores.argmax(-1).tolist() == [2, 0]
    assert (scores[:, [1, 3]] == -torch.inf).all()  # classes without support are never chosen


@pytest.mark.parametrize(
    "build",
    [lambda: Head(torch.zeros(3)), lambda: Head(torch.zeros(3, 2), torch.zeros(2)), lambda: Head(torch.zeros(0, 2)),
     lambda: Head(torch.zeros(3, 2), projection=torch.zeros(3, 5))],
)  # fmt: skip
def test_heads_of_the_wrong_shape(build):
    with pytest.raises(TaskError, match="head"):
        build()


def test_a_head_must_fit_task_and_model(tmp_path):
    task = Task("pets", "Pets", ("cat", "dog"), path=tmp_path)
    with pytest.raises(TaskError, match="3 classes, the task has 2"):
        check_head(Head(torch.zeros(3, 4)), task, 4, "m")
    with pytest.raises(TaskError, match="width 4, m gives 5"):
        check_head(Head(torch.zeros(2, 4)), task, 5, "m")
    with pytest.raises(TaskError, match=r"has no head.safetensors"):
        load_head(tmp_path)


def test_templates_are_text_not_format_strings():
    assert fill("a {} in {}.", "cat") == "a cat in cat."
    assert fill("{0.__class__} {}", "cat") == "{0.__class__} cat"
    assert fill("a drawing of", "cat") == "a drawing of cat"
