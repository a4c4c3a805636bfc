"""Exact order statistics of magnitudes, without sorting: in one tensor, or over a whole model that is never held.

The bits of a non-negative float order like integers. So the k-th largest magnitude of a stream is found digit by digit:
a histogram of the leading 15 bits says in which bin it lies, a histogram of the next 16 bits of that bin's members says
exactly where (float32: two readings; float64: four).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

DIGIT = 16


def kept_count(density: float, total: int) -> int:
    """How many of ``total`` entries a density keeps: ⌊density·total⌋, at least one unless the density is 0."""
    if density <= 0 or total == 0:
        return 0
    return min(total, max(1, int(density * total)))


def kth_smallest(values: Tensor, *ranks: int) -> tuple[float, ...]:
    """The k-th smallest (from 1) of all entries for each of ``ranks``; on the CPU ``values`` is left reordered."""
    flat = values.view(-1)
    if flat.device.type == "cpu":
        array = flat.numpy()
        part = array
        for rank in sorted(set(ranks), reverse=True):  # one rank at a time: NumPy is ten times as fast at that
            part[:].partition(rank - 1)
            part = part[:rank]
        return tuple(float(array[rank - 1]) for rank in ranks)
    return tuple(float(flat.kthvalue(rank).values) for rank in ranks)


class MagnitudeThresholds:
    """For each model, the smallest magnitude among its ``density`` largest entries, over all tensors together.

    `look` may run in several threads; `collect` and `end_round` in one. After ``rounds`` rounds `thresholds` holds one
    float per model: 0 keeps everything, infinity nothing. Entries equal to the threshold are all kept.
    """

    def __init__(self, densities: Sequence[float], dtype: torch.dtype) -> None:
        self.densities = list(densities)
        self.integer = torch.int32 if dtype == torch.float32 else torch.int64
        self.width = 31 if dtype == torch.float32 else 63
        self.float = dtype
        self.searched = [index for index, density in enumerate(densities) if 0 < density < 1]
        self.rounds = -(-self.width // DIGIT) if self.searched else 0
        self.prefix = dict.fromkeys(self.searched, 0)
        self.remaining = dict.fromkeys(self.searched, 0)
        self.counts = self._empty()

    def _empty(self) -> dict[int, np.ndarray]:
        return {index: np.zeros(1 << DIGIT, dtype=np.int64) for index in self.searched}

    def look(self, round_: int, index: int, delta: Tensor) -> np.ndarray:
        """A histogram of the round's digit among the entries of ``delta`` that can still be the k-th; overwrites it."""
        shift = DIGIT * (self.rounds - 1 - round_)
        bits = delta.view(-1).view(self.integer)
        bits.bitwise_and_((1 << self.width) - 1).bitwise_right_shift_(shift)
        if round_ == 0:
            return torch.bincount(bits, minlength=1 << DIGIT).cpu().numpy()
        # Entries that do not share the digits found so far are counted in a second half of the histogram and forgotten.
        # (Counted in one bin they would wait for each other.)
        if bits.numel() < 1 << DIGIT:
            inside = bits[(bits >> DIGIT) == self.prefix[index]] & ((1 << DIGIT) - 1)
            return torch.bincount(inside, minlength=1 << DIGIT).cpu().numpy()
        other = (bits >> DIGIT).bitwise_xor_(self.prefix[index]).clamp_(max=1).bitwise_left_shift_(DIGIT)
        bits.bitwise_and_((1 << DIGIT) - 1).bitwise_or_(other)
        return torch.bincount(bits, minlength=1 << DIGIT)[: 1 << DIGIT].cpu().numpy()

    def collect(self, found: dict[int, np.ndarray]) -> None:
        """Add the histograms of one tensor. (NumPy: torch would wake all cores for so little.)"""
        for index, counts in found.items():
            self.counts[index] += counts

    def end_round(self, round_: int) -> None:
        """Fix one more digit of every threshold."""
        for index in self.searched:
            counts = self.counts[index]
            if round_ == 0:
                self.remaining[index] = kept_count(self.densities[index], int(counts.sum()))
            above = counts[::-1].cumsum()  # above[i]: entries whose digit is at least 65535 - i
            position = int(np.searchsorted(above, self.remaining[index]))
            digit = (1 << DIGIT) - 1 - position
            self.remaining[index] -= int(above[position] - counts[digit])
            self.prefix[index] = (self.prefix[index] << DIGIT) | digit
        self.counts = self._empty()

    @property
    def thresholds(self) -> list[float]:
        """One threshold per model, exactly representable in the computing dtype."""
        out = []
        for index, density in enumerate(self.densities):
            if index in self.prefix:
                bits = torch.tensor([self.prefix[index]], dtype=self.integer)
                out.append(float(bits.view(self.float)))
            else:
                out.append(0.0 if density >= 1 else float("inf"))
        return out
