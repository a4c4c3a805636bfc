"""Groups: means of their members, within one predicted task, in the inputs' order, exact where groups suffice."""

from __future__ import annotations

import itertools

import pytest
import torch

from mergelab.routing.gate import Gate
from mergelab.routing.groups import Centroids, Grouping, group, order, share_out
from mergelab.routing.routers import RouterError


def routed(count: int = 200, tasks: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    logits = 3 * torch.randn(count, tasks, generator=torch.Generator().manual_seed(seed))
    return logits, Gate().weights(logits)


def check(grouping: Grouping, weights: torch.Tensor) -> None:
    """What holds for every grouping: one bin a group, no empty group, weights that are means of the members'."""
    assert grouping.index.shape == (len(weights),) and len(grouping.bins) == len(grouping) == len(grouping.weights)
    for number in range(len(grouping)):
        members = weights[grouping.index == number]
        assert len(members)
        torch.testing.assert_close(grouping.weights[number], members.mean(0), atol=1e-6, rtol=1e-5)
        none = bool((members == 0).all())
        assert none or set(members.argmax(1).tolist()) == {int(grouping.bins[number])}
        assert (int(grouping.bins[number]) == -1) == none


@pytest.mark.parametrize("cluster_on", ["weights", "logits"])
@pytest.mark.parametrize("sizes", [{"groups_per_bin": 1}, {"groups_per_bin": 5}, {"total_groups": 13}, {}])
def test_groups_are_means_within_a_predicted_task(cluster_on, sizes):
    logits, weights = routed()
    grouping = group(logits, weights, cluster_on=cluster_on, **sizes)
    check(grouping, weights)
    torch.testing.assert_close(grouping.weights.sum(1), torch.ones(len(grouping)))
    most = sizes.get("total_groups", 4 * sizes.get("groups_per_bin", 20))
    assert len(grouping) <= most and max(torch.bincount(grouping.bins)) <= max(20, most)


@pytest.mark.parametrize("cluster_on", ["weights", "logits"])
def test_as_many_groups_as_points_give_every_input_its_own_weights(cluster_on):
    logits, weights = routed(60)
    for sizes in ({"groups_per_bin": 60}, {"total_groups": 60}, {"total_groups": 10_000}):
        grouping = group(logits, weights, cluster_on=cluster_on, **sizes)
        assert torch.equal(grouping.weights[grouping.index], weights)


def test_one_group_a_bin_is_one_merge_for_every_predicted_task():
    logits, weights = routed()
    grouping = group(None, weights, groups_per_bin=1)
    assert grouping.bins.tolist() == [0, 1, 2, 3]
    assert torch.equal(grouping.index, logits.argmax(1))


def test_equal_points_are_one_group_with_exactly_their_weights():
    rows = torch.tensor([[0.1, 0.9], [0.7, 0.3], [0.6, 0.4]])
    index = torch.tensor([0, 1, 0, 2, 2, 2, 1, 0])
    grouping = group(None, rows[index], groups_per_bin=20)
    assert len(grouping) == 3 and torch.equal(grouping.weights[grouping.index], rows[index])
    check(group(None, rows[index], groups_per_bin=1), rows[index])


def test_points_that_differ_by_the_last_bit_do_not_break_k_means():
    tiny = torch.tensor(0.6).nextafter(torch.tensor(1.0))
    weights = torch.tensor([[0.6, 0.4], [float(tiny), 0.4], [0.6, 0.4], [0.60001, 0.39999]]).repeat(5, 1)
    check(group(None, weights, groups_per_bin=2), weights)
    logits = torch.zeros(20, 2)  # equal logits for weights that differ: one group, their mean
    assert len(group(logits, weights, groups_per_bin=2, cluster_on="logits")) == 1


def test_clusters_that_are_there_are_found():
    centres = torch.tensor([[0.9, 0.1], [0.75, 0.25], [0.6, 0.4]])
    which = torch.arange(3).repeat_interleave(30)
    noise = 0.01 * torch.rand(90, 1, generator=torch.Generator().manual_seed(1))
    weights = centres[which] + torch.cat([noise, -noise], dim=1)
    for seed in range(5):
        grouping = group(None, weights, groups_per_bin=3, seed=seed)
        assert len(grouping) == 3 and len(set(zip(which.tolist(), grouping.index.tolist(), strict=True))) == 3


def test_k_means_is_as_good_as_the_best_split_of_points_on_a_line():
    """Brute force over all cuts of a sorted line: k-means ends in the best split or close to it."""
    first = torch.rand(12, generator=torch.Generator().manual_seed(3)).sort().values * 0.45 + 0.5
    weights = torch.stack([first, 1 - first], dim=1)

    def spread(parts: list[torch.Tensor]) -> float:
        return sum(float(((part - part.mean(0)) ** 2).sum()) for part in parts)

    cuts = itertools.combinations(range(1, 12), 2)
    best = min(spread(list(weights.tensor_split([a, b]))) for a, b in cuts)
    grouping = group(None, weights, groups_per_bin=3)
    assert spread([weights[rows] for rows in order(grouping)]) <= 1.3 * best + 1e-9


@pytest.mark.parametrize("cluster_on", ["weights", "logits"])
def test_the_same_seed_gives_the_same_groups_whatever_the_order_and_the_global_state(cluster_on):
    logits, weights = routed()
    turn = torch.randperm(200, generator=torch.Generator().manual_seed(9))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = group(logits, weights, groups_per_bin=4, cluster_on=cluster_on, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    two = group(logits, weights, groups_per_bin=4, cluster_on=cluster_on, seed=5)
    assert torch.equal(one.index, two.index) and torch.equal(one.weights, two.weights)
    turned = group(logits[turn], weights[turn], groups_per_bin=4, cluster_on=cluster_on, seed=5)
    torch.testing.assert_close(turned.weights[turned.index], one.weights[one.index][turn])


def test_empty_bins_have_no_group():
    weights = torch.tensor([[0.1, 0.1, 0.8], [0.2, 0.0, 0.8]])
    assert group(None, weights).bins.tolist() == [2, 2]


def test_rows_of_zeros_are_a_bin_of_their_own():
    weights = torch.tensor([[0.0, 0.0], [0.6, 0.4], [0.0, 0.0], [0.9, 0.1]])
    grouping = group(torch.randn(4, 2), weights, groups_per_bin=1, cluster_on="logits")
    check(grouping, weights)
    assert grouping.bins.tolist() == [0, -1] and grouping.index.tolist() == [1, 0, 1, 0]
    assert torch.equal(grouping.weights[1], torch.zeros(2))


def test_weights_need_not_sum_to_one_nor_be_positive():
    weights = torch.tensor([[2.0, -1.0], [0.5, 0.4], [1.5, -0.5]])
    check(group(None, weights, groups_per_bin=2), weights)


def test_one_task_and_no_inputs():
    assert torch.equal(group(None, torch.ones(5, 1)).weights, torch.ones(1, 1))
    empty = group(torch.zeros(0, 3), torch.zeros(0, 3), total_groups=4)
    assert len(empty) == 0 and empty.index.shape == (0,) and empty.weights.shape == (0, 3) and order(empty) == []


def test_results_go_back_to_their_places():
    logits, weights = routed(50)
    grouping = group(logits, weights, groups_per_bin=3)
    inputs = torch.arange(50)
    out = torch.full((50,), -1)
    for number, places in enumerate(order(grouping)):
        assert places.tolist() == sorted(places.tolist()) and bool((grouping.index[places] == number).all())
        out[places] = inputs[places]
    assert torch.equal(out, inputs)


def test_groups_are_shared_out_in_proportion():
    assert share_out(10, [60, 30, 10]) == [6, 3, 1]
    assert share_out(10, [100, 2, 1]) == [8, 1, 1]
    assert share_out(7, [4, 4]) == [4, 3] and share_out(9, [4, 4]) == [4, 4]  # no more than points
    assert share_out(2, [5, 5, 5]) == [1, 1, 1]  # one each at least
    assert share_out(100, [3, 4]) == [3, 4]
    assert share_out(5, []) == []


@pytest.mark.parametrize(
    "wrong",
    [{"groups_per_bin": 0}, {"groups_per_bin": 1.5}, {"total_groups": 0}, {"total_groups": True}, {"cluster_on": "x"}],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(RouterError):
        group(*routed(5), **wrong)


def test_unusable_numbers_are_named():
    logits, weights = routed(3)
    with pytest.raises(RouterError, match="row 2 are not finite"):
        bad = weights.clone()
        bad[2, 0] = torch.nan
        group(None, bad)
    with pytest.raises(RouterError, match="logits of row 1 are not finite"):
        bad = logits.clone()
        bad[1, 0] = torch.inf
        group(bad, weights, cluster_on="logits")
    for given in (None, logits[:2]):
        with pytest.raises(RouterError, match="give logits of the weights' shape"):
            group(given, weights, cluster_on="logits")
    with pytest.raises(RouterError, match="shape"):
        group(None, weights[0])


# Streams


@pytest.mark.parametrize("cluster_on", ["weights", "logits"])
def test_what_was_fitted_is_assigned_to_its_own_groups(cluster_on):
    logits, weights = routed()
    fitted = Centroids.fit(logits, weights, groups_per_bin=4, cluster_on=cluster_on)
    batch = group(logits, weights, groups_per_bin=4, cluster_on=cluster_on)
    found = fitted.assign(logits, weights)
    torch.testing.assert_close(found.weights[found.index], batch.weights[batch.index])
    one_by_one = torch.cat(
        [fitted.assign(logits[i : i + 1], weights[i : i + 1], keep_empty=True).index for i in range(200)]
    )
    assert torch.equal(one_by_one, fitted.assign(logits, weights, keep_empty=True).index)


def test_new_inputs_stay_within_their_predicted_task():
    logits, weights = routed(300, seed=1)
    fitted = Centroids.fit(*routed(100), groups_per_bin=3)
    found = fitted.assign(logits, weights)
    assert torch.equal(found.bins[found.index], logits.argmax(1))
    assert sorted(found.index.unique().tolist()) == list(range(len(found)))  # no group without an input
    assert len(fitted.assign(logits[:1], weights[:1])) == 1
    assert len(fitted.assign(logits[:1], weights[:1], keep_empty=True)) == len(fitted.groups) == 3 * 4 + 1


def test_a_task_that_was_never_predicted_gets_its_expert_and_zeros_the_shared_model():
    fitted = Centroids.fit(None, torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0]]), groups_per_bin=1)
    found = fitted.assign(None, torch.tensor([[0.1, 0.2, 0.7], [0.0, 0.0, 0.0], [0.6, 0.4, 0.0]]))
    wanted = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.85, 0.15, 0.0]])
    torch.testing.assert_close(found.weights[found.index], wanted)


def test_streams_of_nothing_and_of_other_tasks():
    fitted = Centroids.fit(None, torch.zeros(0, 3))
    assert fitted.groups.bins.tolist() == [0, 1, 2, -1]
    assert len(fitted.assign(None, torch.zeros(0, 3))) == 0
    with pytest.raises(RouterError, match="fitted for 3 tasks"):
        fitted.assign(None, torch.ones(1, 2))
