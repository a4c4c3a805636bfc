"""What the pre-flight check says: findings, and the report that holds them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Finding:
    """One sentence about a merge, and what to do about it (empty where nothing needs doing)."""

    level: Literal["ok", "warn", "error"]
    text: str
    fix: str = ""


@dataclass(frozen=True)
class Report:
    """The verdict on a recipe. Bytes are exact, ``peak_memory`` (bytes) and ``seconds`` are estimates."""

    ok: bool
    findings: tuple[Finding, ...]
    bytes_out: int = 0
    peak_memory: int = 0
    disk_free: int = 0
    seconds: float = 0.0
    tensors: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {**dataclasses.asdict(self), "findings": [dataclasses.asdict(finding) for finding in self.findings]}
