"""``gpu``: borrow a GPU on a ZeroGPU Space, do nothing anywhere else. Import this before torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

Work = TypeVar("Work", bound=Callable[..., Any])

try:
    import spaces
except ImportError:
    spaces = None

#: True where GPU work runs in another process: callbacks cannot reach it.
FORKED = spaces is not None and bool(os.environ.get("SPACES_ZERO_GPU"))


def gpu(work: Work) -> Work:
    """``spaces.GPU(work)`` where the package ``spaces`` is there, else ``work`` itself."""
    return work if spaces is None else spaces.GPU(work)
