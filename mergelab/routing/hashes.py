"""Hashing weights while they are read. What identifies weights is in :mod:`mergelab.checkpoints.identity`."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping

from torch import Tensor

from ..checkpoints.identity import file_hash, joined, tensor_hash, tensors_hash


class Hashed(Mapping[str, Tensor]):
    """Tensors that are hashed as they are read, so that nothing is read twice. Any thread may read."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self._digests: dict[str, str] = {}
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        found = tensor_hash(tensor)
        with self._lock:
            self._digests[name] = found
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def hash(self) -> str:
        """Of what was read so far."""
        return joined(self._digests)


__all__ = ["Hashed", "file_hash", "joined", "tensor_hash", "tensors_hash"]
