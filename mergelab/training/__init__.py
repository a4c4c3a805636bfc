"""Fine-tuning: the only room that takes gradients of the towers."""

from __future__ import annotations

from .finetune import Settings, Tuned, finetune

__all__ = ["Settings", "Tuned", "finetune"]
