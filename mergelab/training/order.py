"""Which items a step sees: fixed by the seed, the task and the step's number alone.

So a run that was killed goes on with the same items, and training apart sees, step by step, what training together
sees.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Order:
    """The items of one task's steps: ``items`` of them in all, ``per_epoch`` steps an epoch.

    Where ``batch`` is given every step takes a whole batch, and items come around again when all were seen (equal
    steps); else an epoch's steps share its items evenly (equal epochs).
    """

    task: str
    items: int
    per_epoch: int
    seed: int
    batch: int | None = None

    def places(self, step: int) -> Tensor:
        """Places int64 [n] of the items of a step, counted from the first step of the first epoch."""
        if self.batch is None:
            epoch, within = divmod(step, self.per_epoch)
            return torch.from_numpy(np.array_split(self._shuffled(epoch), self.per_epoch)[within])
        wanted = np.arange(step * self.batch, (step + 1) * self.batch)
        parts = [self._shuffled(int(turn))[wanted[wanted // self.items == turn] % self.items]
                 for turn in np.unique(wanted // self.items)]  # fmt: skip
        return torch.from_numpy(np.concatenate(parts))

    def _shuffled(self, turn: int) -> np.ndarray:
        return _shuffled(self.task, self.items, self.seed, turn)


def steps_per_epoch(items: int, batch: int) -> int:
    return math.ceil(items / batch)


@lru_cache(maxsize=64)
def _shuffled(task: str, items: int, seed: int, turn: int) -> np.ndarray:
    return np.random.default_rng([seed, zlib.crc32(task.encode()), turn]).permutation(items)
