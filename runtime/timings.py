"""Seconds per stage of one generation."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Timings(dict[str, float]):
    """Stage -> its own seconds, summed over its calls, in the order of first use.

    A stage measured inside another is taken off it, so that the values add up to the whole.
    """

    def __init__(self) -> None:
        super().__init__()
        self._inner = [0.0]
        self._open: list[str] = []

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        self.setdefault(stage, 0.0)
        self._inner.append(0.0)
        self._open.append(stage)
        started = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - started
            self._open.pop()
            self[stage] += elapsed - self._inner.pop()
            self._inner[-1] += elapsed

    def add(self, stage: str, seconds: float) -> None:
        """Count seconds measured otherwise, by a GPU's events, inside what is being measured."""
        self[stage] = self.get(stage, 0.0) + seconds
        self._inner[-1] += seconds

    @property
    def current(self) -> str | None:
        """The innermost stage that is being measured; may be asked from another thread."""
        measured = self._open[-1:]
        return measured[0] if measured else None

    @property
    def total(self) -> float:
        return sum(self.values())

    def summary(self, least: float = 0.05) -> str:
        """``denoise 1.2 s, unet 30.1 s``: every stage of at least `least` seconds."""
        return ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in self.items() if seconds >= least)
