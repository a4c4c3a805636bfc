"""Training runs: recipe in, record and model out; what they cost, and what they are compared with."""

from __future__ import annotations

from .compare import compare, read_compare
from .costs import estimate
from .record import RECORD_FILE, Record
from .run import News, train

__all__ = ["RECORD_FILE", "News", "Record", "compare", "estimate", "read_compare", "train"]
