"""Buffers, graphs and plans that are made for one set of sizes and used again while these stay."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Kept(Generic[T]):
    """The value of the last key."""

    def __init__(self) -> None:
        self._key: Hashable = None
        self.value: T | None = None

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value, made anew for another key; the old one is freed first, because both need not fit."""
        if self.value is None or self._key != key:
            self.value = None
            self.value = make()
            self._key = key
        return self.value
