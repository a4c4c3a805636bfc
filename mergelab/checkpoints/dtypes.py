"""The dtype codes of the safetensors format, their sizes, and the torch dtypes that hold them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import CheckpointError

if TYPE_CHECKING:
    import torch

#: Bits of one element, for every code that safetensors 0.8 knows.
BITS: dict[str, int] = {
    "F64": 64,
    "F32": 32,
    "F16": 16,
    "BF16": 16,
    "I64": 64,
    "I32": 32,
    "I16": 16,
    "I8": 8,
    "U64": 64,
    "U32": 32,
    "U16": 16,
    "U8": 8,
    "BOOL": 8,
    "C64": 64,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F4": 4,
}

_TORCH_NAMES: dict[str, str] = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}

#: The codes that a merge may average.
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


def torch_dtype(code: str) -> torch.dtype:
    """The torch dtype of a safetensors code: ``torch_dtype("BF16") is torch.bfloat16``.

    Raises :class:`~mergelab.errors.CheckpointError` for a code that torch cannot hold (``F4``, ``F6_*``, or unknown).
    """
    import torch

    found = getattr(torch, _TORCH_NAMES.get(code, ""), None)
    if not isinstance(found, torch.dtype):
        raise CheckpointError(f"torch has no dtype for {code!r}; convert the checkpoint to F32, F16 or BF16 first.")
    return found


def dtype_code(dtype: torch.dtype) -> str:
    """The safetensors code of a torch dtype: ``dtype_code(torch.bfloat16) == "BF16"``."""
    name = str(dtype).removeprefix("torch.")
    for code, torch_name in _TORCH_NAMES.items():
        if torch_name == name:
            return code
    raise CheckpointError(f"Tensors of {dtype} cannot be stored as safetensors; cast them to float32 first.")


def nbytes_of(code: str, shape: tuple[int, ...]) -> int:
    """Bytes of a packed tensor of this dtype and shape."""
    bits = BITS[code]
    for size in shape:
        bits *= size
    return bits // 8
