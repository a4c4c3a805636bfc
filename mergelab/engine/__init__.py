"""The engine: runs a method over checkpoints, tensor by tensor; says beforehand what it will cost."""

from __future__ import annotations

from .device import pick_device
from .findings import Finding, Report
from .folder import merge_to_folder
from .plan import Plan, plan, plan_recipe
from .preflight import preflight
from .snapshots import Snapshots, merge_snapshots
from .stream import merge_to_memory, stream

__all__ = [
    "Finding",
    "Plan",
    "Report",
    "Snapshots",
    "merge_snapshots",
    "merge_to_folder",
    "merge_to_memory",
    "pick_device",
    "plan",
    "plan_recipe",
    "preflight",
    "stream",
]
