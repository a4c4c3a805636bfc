"""How to train: optimiser, rates, batches, schedule, and which parameters. Plain values, checked."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from ..errors import RecipeError, suggest
from ..recipe.checks import shown

#: Optimisers by name. ``gd`` takes one step on the whole split, its gradient added up batch by batch.
OPTIMISERS = ("adamw", "adam", "sgd", "momentum", "gd")
SCHEDULES = ("constant", "cosine")
TUNES = ("full", "lora")
HEADS = ("frozen", "trained")
#: ``epochs``: every item of every task once an epoch; ``steps``: as many steps of a whole batch for every task, a small
#: task's items coming around again.
PACES = ("epochs", "steps")
PRECISIONS = ("auto", "float32", "bfloat16")
_RATES = {"full": 3e-5, "lora": 1e-3}
_PLAIN_RATE = 0.05
_MOMENTUM = 0.9
_CHOICES = {"optimiser": OPTIMISERS, "schedule": SCHEDULES, "tune": TUNES, "heads": HEADS, "pace": PACES,
            "precision": PRECISIONS}  # fmt: skip


@dataclass(frozen=True)
class Tuning:
    """How to train.

    ``rate`` None: 3e-5 for all weights and 1e-3 for LoRA with adam and adamw, 0.05 without Adam's scaling.
    ``weight_decay`` is adamw's, decoupled (and 0 for the others). ``clip``: largest norm of a step's gradient (None:
    none). ``schedule`` runs once over the whole budget; ``warmup`` is the share of it in which the rate rises.
    ``heads``: read as they are, or trained along with rate ``head_rate`` and kept with their task.
    """

    optimiser: str = "adamw"
    rate: float | None = None
    weight_decay: float = 0.01
    batch: int = 64
    clip: float | None = 1.0
    schedule: str = "constant"
    warmup: float = 0.0
    tune: str = "full"
    rank: int = 16
    heads: str = "frozen"
    head_rate: float = 3e-3
    pace: str = "epochs"
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if not isinstance(value, str) or value not in allowed:
                raise RecipeError(f"{name!r} cannot be {shown(value)}.{suggest(str(value), allowed)}")
        for name, least, most in (("batch", 1, 65536), ("rank", 1, 4096), ("seed", 0, 2**31 - 1)):
            _whole(name, getattr(self, name), least, most)
        for name, low, high, optional in (
            ("rate", 0.0, 100.0, True), ("weight_decay", 0.0, 10.0, False), ("clip", 0.0, 1e6, True),
            ("warmup", 0.0, 1.0, False), ("head_rate", 0.0, 100.0, False),
        ):  # fmt: skip
            _number(name, getattr(self, name), low, high, optional)
        if self.clip == 0:
            raise RecipeError("'clip' must be above 0, or left out for no clipping.")

    @property
    def tower_rate(self) -> float:
        """The rate that is used."""
        if self.rate is not None:
            return self.rate
        return _RATES[self.tune] if self.optimiser in ("adam", "adamw") else _PLAIN_RATE

    @property
    def moments(self) -> int:
        """Numbers that the optimiser keeps for every trained one."""
        return {"adamw": 2, "adam": 2, "momentum": 1}.get(self.optimiser, 0)

    def factor(self, step: int, total: int) -> float:
        """What the rate is multiplied with at ``step`` of ``total``."""
        warm = round(self.warmup * total)
        if step < warm:
            return (step + 1) / warm
        if self.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, total - warm))))

    def optimiser_of(self, tower: list[nn.Parameter], heads: list[nn.Parameter]) -> torch.optim.Optimizer:
        """A fresh optimiser over the tower's parameters and the heads' (a group each)."""
        groups: list[dict[str, Any]] = [{"params": tower, "lr": self.tower_rate, "most": self.tower_rate}]
        if heads:
            groups.append({"params": heads, "lr": self.head_rate, "most": self.head_rate})
        if self.optimiser == "adamw":
            return torch.optim.AdamW(groups, weight_decay=self.weight_decay)
        if self.optimiser == "adam":
            return torch.optim.Adam(groups)
        return torch.optim.SGD(groups, momentum=_MOMENTUM if self.optimiser == "momentum" else 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Every value, as plain data."""
        return asdict(self)


def _whole(name: str, value: Any, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise RecipeError(f"{name!r} must be a whole number from {least} to {most}, not {shown(value)}.")


def _number(name: str, value: Any, low: float, high: float, optional: bool) -> None:
    if value is None and optional:
        return
    good = not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
    if not good or not low <= value <= high:
        raise RecipeError(f"{name!r} must be a number from {low:g} to {high:g}, not {shown(value)}.")
