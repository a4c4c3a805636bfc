"""What merges over the same open checkpoints share, so that moving one slider does not repeat the others' work."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor

#: Merged task vectors are kept for checkpoints that are in memory anyway, up to this many bytes in the whole process.
KEEP_BYTES = 256 * 2**20
_MOST = 8


class Shared:
    """Tensors already found finite, surveys already made, and the last merged task vector before its coefficient."""

    def __init__(self) -> None:
        self.finite: set[tuple[str | None, str]] = set()
        self.surveys: dict[Any, Mapping[str, Any]] = {}
        self.task_vector: tuple[Any, dict[str, Tensor]] | None = None


_known: OrderedDict[tuple[int, ...], tuple[list[weakref.ref[Any]], Shared]] = OrderedDict()
_lock = threading.Lock()


def shared_by(*checkpoints: Any) -> Shared:
    """The `Shared` of exactly these open checkpoints (by identity: a checkpoint opened again may have changed)."""
    key = tuple(map(id, checkpoints))
    with _lock:
        for gone in [key for key, (references, _) in _known.items() if any(ref() is None for ref in references)]:
            del _known[gone]
        if key not in _known:
            _known[key] = ([weakref.ref(checkpoint) for checkpoint in checkpoints if checkpoint is not None], Shared())
        _known.move_to_end(key)
        while len(_known) > _MOST:
            _known.popitem(last=False)
        return _known[key][1]


def keep(shared: Shared, key: Any, vectors: dict[str, Tensor]) -> None:
    """Keep a merged task vector; older ones give way."""
    with _lock:
        shared.task_vector = (key, vectors)
        held = sum(vector.numel() * vector.element_size() for vector in vectors.values())
        for _, other in reversed(list(_known.values())):
            if other is shared or other.task_vector is None:
                continue
            held += sum(vector.numel() * vector.element_size() for vector in other.task_vector[1].values())
            if held > KEEP_BYTES:
                other.task_vector = None
