"""The engine: runs a method over checkpoints, tensor by tensor."""

from __future__ import annotations

from .device import pick_device
from .plan import Plan, plan, plan_recipe
from .stream import merge_to_memory, stream

__all__ = ["Plan", "merge_to_memory", "pick_device", "plan", "plan_recipe", "stream"]
