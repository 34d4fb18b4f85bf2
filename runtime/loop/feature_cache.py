"""Feature caching (DeepCache, Ma et al. 2023, arXiv:2312.00858): whole U-Net steps, and shallow ones between them.

What the U-Net's deep layers say changes little between neighbouring steps. A whole step hands out its deep features;
the shallow steps after it take them in and run the outer layers alone. Both are static graphs, exported together with
``consisti2v export --cache-branch``.
"""

from __future__ import annotations

from collections.abc import Callable

from ..session import Array, Session


class CachePolicy:
    """Which steps are whole ones: one of `interval`, and the first one over other rows than before."""

    def __init__(self, interval: int) -> None:
        self._interval = interval
        self._rows: object = None
        self._age = 0

    def clear(self) -> None:
        """A new clip: its first step is a whole one."""
        self._rows = None

    def count_step(self, rows: object) -> bool:
        """Count a step over these rows; whether it is a shallow one."""
        self._age += 1
        if self._rows is rows and self._age < self._interval:
            return True
        self._rows, self._age = rows, 0
        return False


class FeatureCache(CachePolicy):
    """Deep features of the last whole step, on the host; `load` gives the session of the shallow step for a batch."""

    def __init__(self, interval: int, load: Callable[[int], Session]) -> None:
        super().__init__(interval)
        self.load = load
        self.features: list[Array] = []

    def count_step(self, rows: object) -> bool:
        reuse = super().count_step(rows)
        if not reuse:
            self.features = []
        return reuse

    def keep(self, features: Array, alone: bool) -> None:
        """Features of one turn of a whole step [rows, f, channels, h, w].

        `alone`: the turn is the step's only one. Nothing writes to the session's buffer then before the next whole
        step, so it is handed on as it is.
        """
        self.features.append(features if alone else features.copy())
