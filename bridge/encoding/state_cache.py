"""What an encoder keeps from one call to the next: states of rows, and whole results.

One store, bounded by bytes; what was not asked for longest goes first. A key names everything that
its value depends on, towers' versions among it (``bridge.towers.watch``), so nothing has to be
told that it is out of date: an older version is never asked for again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

DEFAULT_BYTES = 64 * 2**20
"""A hundred prompts of SDXL in float32."""


@dataclass(frozen=True)
class CacheInfo:
    """What a cache has done and holds; ``bytes`` and its ``limit`` count tensors alone."""

    hits: int
    misses: int
    entries: int
    bytes: int
    limit: int


class StateCache:
    """A least recently used store of ``limit`` bytes; 0 keeps nothing. Threads may share it."""

    def __init__(self, limit: int = DEFAULT_BYTES) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._bytes = self._hits = self._misses = 0

    def get(self, key: Hashable) -> Any:
        """What was put under ``key``, or None."""
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                self._misses += 1
                return None
            self._hits += 1
            self._kept.move_to_end(key)
            return found[0]

    def put(self, key: Hashable, value: Any, size: int) -> None:
        """Keep ``value``, whose tensors take ``size`` bytes."""
        if size > self.limit:
            return
        with self._lock:
            self._bytes += size - self._kept.pop(key, (None, 0))[1]
            self._kept[key] = (value, size)
            while self._bytes > self.limit:
                self._bytes -= self._kept.popitem(last=False)[1][1]

    def clear(self) -> None:
        """Keep nothing of what there is."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def info(self) -> CacheInfo:
        """Its figures."""
        with self._lock:
            return CacheInfo(self._hits, self._misses, len(self._kept), self._bytes, self.limit)
