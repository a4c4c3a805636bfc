"""What identifies weights: SHA-256 over names, dtypes, shapes and bytes, whatever the order and the files."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from ..checkpoints import dtype_code
from ..checkpoints.checkpoint import raw_bytes


def tensor_hash(tensor: Tensor) -> str:
    """SHA-256 (hex) of one tensor's dtype, shape and bytes."""
    digest = hashlib.sha256(f"{dtype_code(tensor.dtype)}{list(tensor.shape)}\0".encode())
    digest.update(raw_bytes(tensor.cpu()))
    return digest.hexdigest()


def tensors_hash(tensors: Mapping[str, Tensor], aliases: Mapping[str, str] | None = None) -> str:
    """SHA-256 (hex) of named tensors; those of ``aliases`` (tied name -> stored name) count by their target's name."""
    aliases = aliases or {}
    return joined({name: tensor_hash(tensor) for name, tensor in tensors.items() if name not in aliases}, aliases)


def joined(digests: Mapping[str, str], aliases: Mapping[str, str] | None = None) -> str:
    """The hash of tensors whose own hashes are known."""
    digest = hashlib.sha256()
    for name in sorted(digests):
        digest.update(f"{name}\0{digests[name]}\0".encode("utf-8", "surrogatepass"))
    for name in sorted(aliases or {}):
        digest.update(f"\1{name}\0{(aliases or {})[name]}\0".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


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
