"""What parent and worker say to each other besides requests and answers."""

from __future__ import annotations

import pickle
from typing import Any

STOP, SEEN = b"stop", b"seen"  # parent to worker: end the job; the last news was read. All else is a request
NEWS_EVERY = 0.2  # seconds between two pieces of news of a job
GRACE = 10.0  # seconds that a job has to end by itself


def pack(kind: str, *rest: Any) -> bytes:
    """Worker to parent: ("ready",), ("progress", done, total, text); all else is an answer."""
    return pickle.dumps((kind, *rest))
