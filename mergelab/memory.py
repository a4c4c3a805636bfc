"""Memory that is free, given back to the machine."""

from __future__ import annotations

import ctypes


def trim() -> None:
    """Return freed memory to the system where the C library can (glibc); does nothing elsewhere.

    glibc keeps small blocks that were freed for its own use, so a routed model whose parts have just become views of
    their stacks would stay resident twice.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return
