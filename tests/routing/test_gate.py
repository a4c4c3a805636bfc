"""Gates: softmax and its options by hand, and weights from elsewhere, checked."""

from __future__ import annotations

import math

import pytest
import torch

from mergelab.routing.gate import Gate, check_weights, entropy, fixed, normalise, one_hot, uniform
from mergelab.routing.routers import RouterError

LOGITS = torch.tensor([[1.0, 2.0, 3.0], [math.log(6), math.log(3), 0.0]])


def close(found: torch.Tensor, wanted: list) -> None:
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float32), atol=1e-6, rtol=1e-6)


def test_softmax_by_hand():
    close(Gate().weights(LOGITS)[1:], [[0.6, 0.3, 0.1]])
    assert Gate().weights(LOGITS).dtype == torch.float32


def test_temperature_divides_the_logits():
    close(Gate(temperature=0.5).weights(LOGITS)[1:], [[36 / 46, 9 / 46, 1 / 46]])  # squares of 6, 3, 1
    close(Gate(temperature=1e9).weights(LOGITS), [[1 / 3] * 3] * 2)
    close(Gate(temperature=1e-12).weights(LOGITS), [[0, 0, 1], [1, 0, 0]])


def test_top_k_keeps_the_likeliest_and_shares_out_their_weights():
    close(Gate(top_k=2).weights(LOGITS)[1:], [[2 / 3, 1 / 3, 0]])
    close(Gate(top_k=1).weights(LOGITS), [[0, 0, 1], [1, 0, 0]])
    for k in (3, 50):
        torch.testing.assert_close(Gate(top_k=k).weights(LOGITS), Gate().weights(LOGITS))


def test_logits_that_tie_with_the_kth_are_kept():
    close(Gate(top_k=1).weights(torch.tensor([[1.0, 1.0, 0.0]])), [[0.5, 0.5, 0]])


def test_saturated_logits():
    """Far apart and huge: no overflow, and top_k shares by the logits, not by probabilities that are 0."""
    close(Gate().weights(torch.tensor([[3e38, -3e38, 0.0]])), [[1, 0, 0]])
    close(Gate(temperature=1e-30).weights(torch.tensor([[3e38, -3e38, 0.0]])), [[1, 0, 0]])
    close(Gate(top_k=2).weights(torch.tensor([[1000.0, 0.0, -5.0]])), [[1, 0, 0]])


def test_unsure_rows_leave_the_shared_model_alone():
    weights = Gate(threshold=0.62).weights(LOGITS)  # largest probabilities 0.665 and 0.6
    assert float(weights[0].sum()) == pytest.approx(1) and torch.equal(weights[1], torch.zeros(3))


def test_confidence_is_that_before_top_k():
    """One task alone has weight 1, which says nothing of how sure the router is."""
    assert torch.equal(Gate(top_k=1, threshold=0.62).weights(LOGITS)[1], torch.zeros(3))


def test_a_probability_equal_to_the_threshold_is_enough():
    assert bool((Gate(threshold=1 / 3).weights(torch.zeros(1, 3)) > 0).all())
    close(Gate(threshold=1.0).weights(torch.tensor([[100.0, 0.0]])), [[1, 0]])


def test_one_task_and_no_rows():
    assert torch.equal(Gate(top_k=1, threshold=0.9).weights(torch.tensor([[-7.0], [3.0]])), torch.ones(2, 1))
    assert Gate(top_k=1, threshold=0.5).weights(torch.zeros(0, 4)).shape == (0, 4)


@pytest.mark.parametrize("gate", [Gate(), Gate(0.3), Gate(top_k=2), Gate(threshold=0.5), Gate(2.0, 3, 0.3)])
def test_rows_sum_to_one_and_the_order_of_tasks_and_rows_does_not_matter(gate):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 6, generator=generator).round(decimals=1) * 3  # with ties
    weights = gate.weights(logits)
    total = weights.sum(dim=1)
    assert bool((((total - 1).abs() < 1e-6) | (total == 0)).all()) and bool((weights >= 0).all())
    tasks, rows = torch.randperm(6, generator=generator), torch.randperm(50, generator=generator)
    torch.testing.assert_close(gate.weights(logits[:, tasks]), weights[:, tasks])
    assert torch.equal(gate.weights(logits[rows]), weights[rows])


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": 0}, {"temperature": -1.0}, {"temperature": math.nan}, {"temperature": math.inf},
        {"temperature": "1"}, {"top_k": 0}, {"top_k": 1.5}, {"top_k": True}, {"threshold": -0.1}, {"threshold": 1.1},
        {"threshold": math.nan}, {"temperature": True},
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(RouterError, match=next(iter(wrong))):
        Gate(**wrong)


def test_unusable_logits_are_named():
    with pytest.raises(RouterError, match="logits of row 1 are not finite"):
        Gate().weights(torch.tensor([[0.0, 1.0], [torch.nan, 0.0]]))
    for logits in (torch.zeros(3), torch.zeros(3, 0)):
        with pytest.raises(RouterError, match="shape"):
            Gate().weights(logits)


def test_one_hot_uniform_and_fixed():
    close(one_hot(torch.tensor([2, 0]), 3), [[0, 0, 1], [1, 0, 0]])
    close(one_hot(1, 2), [[0, 1]])
    close(one_hot([1, 1], 2), [[0, 1], [0, 1]])
    assert one_hot([], 3).shape == (0, 3)
    close(uniform(2, 4), [[0.25] * 4] * 2)
    rows = fixed([0.2, 0.5], 3)
    close(rows, [[0.2, 0.5]] * 3)
    rows[0, 0] = 9.0  # every row has memory of its own
    assert float(rows[1, 0]) == pytest.approx(0.2)
    close(fixed([-1.0, 2.0], 1, allow_negative=True), [[-1, 2]])
    assert fixed([0.2, 0.8], 0).shape == (0, 2)


@pytest.mark.parametrize("index", [[3], [-1], [0.5], [True], [[1]]])
def test_tasks_that_are_not_there_are_refused(index):
    with pytest.raises(RouterError):
        one_hot(index, 3)


def test_weights_are_checked():
    close(check_weights([[0.2, 0.9], [0, 0]], 2), [[0.2, 0.9], [0, 0]])
    close(check_weights([0.2, 0.9], 2), [0.2, 0.9])
    assert check_weights(torch.zeros(0, 2), 2).shape == (0, 2)
    close(check_weights([[0.5, 0.5], [0, 0]], 2, must_sum=True), [[0.5, 0.5], [0, 0]])  # zeros: the shared model alone


@pytest.mark.parametrize(
    ("weights", "options", "words"),
    [
        ([[1, 0], [0, math.nan]], {}, "row 1 are not finite"),
        ([math.inf, 1], {}, "all inputs are not finite"),
        ([[1, 0], [1.5, -0.5]], {}, "row 1 have -0.5 at task 2"),
        ([[1, 0], [0.5, 0.4]], {"must_sum": True}, "row 1 sum to 0.9"),
        ([1, -1], {"must_sum": True, "allow_negative": True}, "all inputs sum to 0"),
        ([1, 0, 0], {}, "2 numbers"),
        ([[1], [0]], {}, "2 numbers"),
        (torch.zeros(1, 1, 2), {}, "2 numbers"),
        (1.0, {}, "2 numbers"),
        ("ab", {}, "table of numbers"),
        ([[1, 0], [1]], {}, "table of numbers"),
        (None, {}, "table of numbers"),
    ],
)
def test_wrong_weights_are_named(weights, options, words):
    with pytest.raises(RouterError, match=words):
        check_weights(weights, 2, **options)


def test_sliders_are_normalised_and_zeros_stay():
    close(normalise([1, 3]), [0.25, 0.75])
    close(normalise([[2, 2], [0, 0]]), [[0.5, 0.5], [0, 0]])
    close(normalise([3e38, 3e38]), [0.5, 0.5])
    close(normalise([1e-40, 3e-40]), [0.25, 0.75])
    with pytest.raises(RouterError, match="negative"):
        normalise([1, -1])
    with pytest.raises(RouterError, match="table of numbers"):
        normalise("1")
    with pytest.raises(RouterError, match="shape"):
        normalise(1.0)
    with pytest.raises(RouterError, match="not a row"):
        fixed([[1.0, 0.0]], 2)


def test_entropy_by_hand():
    weights = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.25] * 4, [0.0, 1.0, 0.0, 0.0], [0.0] * 4])
    close(entropy(weights), [math.log(2), math.log(4), 0, 0])
    assert entropy(torch.zeros(0, 3)).shape == (0,)
