"""Features from hidden states do not depend on padding."""

from __future__ import annotations

import pytest
import torch

from mergelab.routing.features import last_token, loss_and_accuracy, masked_mean
from mergelab.routing.routers import RouterError

LENGTHS = (3, 5, 1)


def padded(side: str) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Sequences of several lengths, and the same as one batch with NaN as padding."""
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randn(n, 4, generator=generator) for n in LENGTHS]
    hidden, mask = torch.full((3, 6, 4), torch.nan), torch.zeros(3, 6, dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        places = slice(0, len(sequence)) if side == "right" else slice(6 - len(sequence), 6)
        hidden[row, places], mask[row, places] = sequence, 1
    return sequences, hidden, mask


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_the_masked_mean_is_the_mean_without_padding(side, dtype):
    sequences, hidden, mask = padded(side)
    torch.testing.assert_close(masked_mean(hidden, mask.to(dtype)), torch.stack([s.mean(0) for s in sequences]))


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_last_token_is_found_on_either_side(side):
    sequences, hidden, mask = padded(side)
    assert torch.equal(last_token(hidden, mask), torch.stack([s[-1] for s in sequences]))


def test_without_a_mask_every_token_counts():
    hidden = torch.arange(12.0).reshape(2, 3, 2)
    assert torch.equal(masked_mean(hidden), torch.tensor([[2.0, 3.0], [8.0, 9.0]]))
    assert torch.equal(last_token(hidden), torch.tensor([[4.0, 5.0], [10.0, 11.0]]))


def test_half_precision_is_summed_in_float32():
    hidden = torch.full((1, 4096, 1), 60000.0, dtype=torch.float16)  # the sum is beyond float16
    found = masked_mean(hidden)
    assert found.dtype == torch.float32 and float(found) == pytest.approx(60000, rel=1e-3)
    assert last_token(hidden).dtype == torch.float32


def test_no_inputs():
    assert masked_mean(torch.zeros(0, 3, 2)).shape == (0, 2)
    assert last_token(torch.zeros(0, 3, 2), torch.zeros(0, 3)).shape == (0, 2)


@pytest.mark.parametrize("of", [masked_mean, last_token])
@pytest.mark.parametrize(
    ("hidden", "mask", "words"),
    [
        (torch.zeros(2, 3), None, "shape"),
        (torch.zeros(2, 0, 3), None, "shape"),
        (torch.zeros(2, 3, 4), torch.ones(2, 4), "mask must have the shape"),
        (torch.zeros(2, 3, 4), torch.tensor([[1, 1, 0], [0, 0, 0]]), "Input 1 is all padding"),
        (torch.zeros(1, 2, 4), torch.tensor([[0.5, 1.0]]), "1 .a token. and 0"),
        (torch.zeros(1, 2, 4), torch.tensor([[0.0, -1e4]]), "1 .a token. and 0"),
    ],
)
def test_wrong_shapes_and_masks_are_named(of, hidden, mask, words):
    with pytest.raises(RouterError, match=words):
        of(hidden, mask)


def test_loss_and_accuracy_are_means_over_tasks():
    """Three examples of task 0 (two right), one of task 1 (wrong), none of task 2."""
    probabilities = torch.tensor([[0.8, 0.1, 0.1], [0.6, 0.2, 0.2], [0.2, 0.7, 0.1], [0.5, 0.3, 0.2]])
    loss, accuracy = loss_and_accuracy(probabilities.log(), torch.tensor([0, 0, 0, 1]), 3)
    assert accuracy == pytest.approx((2 / 3 + 0) / 2)
    logs = probabilities.double().log()
    assert loss == pytest.approx(-((logs[0, 0] + logs[1, 0] + logs[2, 0]) / 3 + logs[3, 1]).item() / 2, abs=1e-6)
