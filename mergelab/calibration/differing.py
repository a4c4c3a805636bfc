"""Which tensors need no statistics, because all experts have the same values there and nothing is weighed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoints import Checkpoint, differing, load
from ..errors import CheckpointError, HubError
from ..progress import Stop

#: Why such a tensor has none; a merge with experts that were not there then says it of the tensor.
EQUAL = "all experts that were collected together have the same values here (--all-tensors takes it too)"


def equal_tensors(experts: Mapping[str, str | Path | Checkpoint], *, stop: Stop | None = None) -> dict[str, str]:
    """Tensors in which the experts do not differ -> the reason in words.

    A linear layer's weight and bias may be solved for together from the weight's statistics, so a weight whose bias
    differs is not among them. {} for one expert alone, and for experts that differ in nothing.
    """
    opened = [source if isinstance(source, Checkpoint) else load(source) for source in experts.values()]
    try:
        found = differing(opened, stop=stop)
        if not found:
            return {}
        kept = found | {name.removesuffix("bias") + "weight" for name in found if name.endswith("bias")}
        return dict.fromkeys((name for name in opened[0].infos if name not in kept), EQUAL)
    finally:
        for source, checkpoint in zip(experts.values(), opened, strict=True):
            if checkpoint is not source:
                checkpoint.close()


def left_out(
    experts: Mapping[str, Any], space: str, changed_only: bool, options: Mapping[str, Any], stop: Stop | None = None
) -> dict[str, dict[str, str]]:
    """What a collection leaves out, as its option ``leave``; {} where all tensors, or tensors by name, are wanted."""
    if not changed_only or space != "weights" or options.get("names") is not None:
        return {}
    try:
        return {"leave": equal_tensors(experts, stop=stop)}
    except (CheckpointError, HubError):  # where one of them cannot be read: it may be one whose turn does not come
        return {}
