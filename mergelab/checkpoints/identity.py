"""What identifies weights: SHA-256 over names, dtypes, shapes and bytes, whatever the order and the files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .dtypes import dtype_code

if TYPE_CHECKING:
    from torch import Tensor

#: The settings of an adapter that say what its tensors do to the base (those that deltas.py reads).
_EFFECT = (
    "peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out", "modules_to_save",
    "feedforward_modules",
)  # fmt: skip


def tensor_hash(tensor: Tensor) -> str:
    """SHA-256 (hex) of one tensor's dtype, shape and bytes."""
    from .checkpoint import raw_bytes

    digest = hashlib.sha256(f"{dtype_code(tensor.dtype)}{list(tensor.shape)}\0".encode())
    digest.update(raw_bytes(tensor.cpu()))
    return digest.hexdigest()


def tensors_hash(tensors: Mapping[str, Tensor], aliases: Mapping[str, str] | None = None) -> str:
    """SHA-256 (hex) of named tensors; those of ``aliases`` (tied name -> stored name) count by their target's name."""
    aliases = aliases or {}
    return joined({name: tensor_hash(tensors[name]) for name in tensors if name not in aliases}, aliases)


def joined(digests: Mapping[str, str], aliases: Mapping[str, str] | None = None) -> str:
    """The hash of tensors whose own hashes are known."""
    digest = hashlib.sha256()
    for name in sorted(digests):
        digest.update(f"{name}\0{digests[name]}\0".encode("utf-8", "surrogatepass"))
    for name in sorted(aliases or {}):
        digest.update(f"\1{name}\0{(aliases or {})[name]}\0".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def adapter_hash(base: str, tensors: str, settings: Mapping[str, Any]) -> str:
    """The hash of an adapter on a base, from theirs and the settings that have an effect on the weights.

    It does not depend on how the factors are multiplied out, nor on where the base lies on this machine.
    """
    said = {key: settings[key] for key in _EFFECT if settings.get(key)}
    said = {key: sorted(map(str, value)) if isinstance(value, (list, set)) else value for key, value in said.items()}
    text = json.dumps(said, sort_keys=True, default=str)
    return hashlib.sha256(f"adapter\0{base}\0{tensors}\0{text}".encode("utf-8", "surrogatepass")).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
