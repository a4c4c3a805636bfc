"""Where tensors are computed on."""

from __future__ import annotations

import os

import torch

from ..errors import MethodError, suggest

DEVICES = ("auto", "cpu", "cuda", "mps")


def pick_device(device: str | torch.device = "auto", *, merging: bool = False) -> torch.device:
    """The device to use: ``auto`` takes CUDA, then Apple's MPS, then the CPU.

    ``merging`` keeps ``auto`` on the CPU where a GPU is lent per call only (ZeroGPU Spaces): merging is bound by
    memory. Raises :class:`~mergelab.errors.MethodError` when the device asked for is not there.
    """
    if isinstance(device, torch.device):
        return device
    kind = device.split(":")[0]
    if kind not in DEVICES:
        raise MethodError(f"There is no device {device!r}.{suggest(device, DEVICES)}")
    if kind == "auto":
        if merging and os.environ.get("SPACES_ZERO_GPU"):
            return torch.device("cpu")
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if kind == "cuda" and not torch.cuda.is_available():
        raise MethodError("This machine has no CUDA device that torch can use; choose device 'auto' or 'cpu'.")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise MethodError("This machine has no MPS device; choose device 'auto' or 'cpu'.")
    return torch.device(device)


def check_dtype(device: torch.device, dtype: torch.dtype) -> None:
    """Raise MethodError where the device cannot compute in ``dtype``."""
    if device.type == "mps" and dtype == torch.float64:
        raise MethodError("MPS cannot compute in float64; choose device 'cpu', or dtype 'float32'.")
