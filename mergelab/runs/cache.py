"""A small cache that is bounded in bytes, least recently used out first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class ByteCache(Generic[Value]):
    """Keep values until their sizes sum to more than ``limit`` bytes; safe to use from several threads.

    A value larger than the limit is handed out and not kept. ``size`` tells the bytes of a value.
    """

    def __init__(self, limit: int, size: Callable[[Value], int]) -> None:
        self.limit = limit
        self._size = size
        self._held: OrderedDict[Hashable, tuple[int, Value]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Value | None:
        with self._lock:
            if key not in self._held:
                return None
            self._held.move_to_end(key)
            return self._held[key][1]

    def put(self, key: Hashable, value: Value) -> None:
        size = self._size(value)
        with self._lock:
            self._held.pop(key, None)
            if size > self.limit:
                return
            self._held[key] = (size, value)
            total = sum(held for held, _ in self._held.values())
            while total > self.limit:
                _, (freed, _) = self._held.popitem(last=False)
                total -= freed

    def __len__(self) -> int:
        return len(self._held)
