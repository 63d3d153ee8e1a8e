"""Least-recently-used store of what a method computes once for a reference and uses for every row that shows it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class ReferenceCache(Generic[T]):
    """Values by content digest, at most `max_bytes` of them; `size` tells a value's bytes. Counts hits and misses.

    A value larger than the whole bound is not kept. Keys must be digests of content: two references with one key are one reference.
    """

    def __init__(self, max_bytes: int, size: Callable[[T], int]) -> None:
        if max_bytes < 0:
            raise ValueError(f"cache_bytes is {max_bytes}; give 0 to keep nothing.")
        self.max_bytes = max_bytes
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._size = size
        self._values: OrderedDict[str, T] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str) -> T | None:
        """The value of `key`, now the most recently used; None, and a miss counted, if it is not here."""
        if key not in self._values:
            self.misses += 1
            return None
        self.hits += 1
        self._values.move_to_end(key)
        return self._values[key]

    def put(self, key: str, value: T) -> None:
        """Keep `value`; drop the least recently used ones until the bound holds."""
        if key in self._values:
            self.bytes -= self._size(self._values.pop(key))
        self._values[key] = value
        self.bytes += self._size(value)
        while self.bytes > self.max_bytes:
            _, dropped = self._values.popitem(last=False)
            self.bytes -= self._size(dropped)
