"""Keeping the GPU a few steps ahead of the host: enough that it never waits, few enough that a stop is prompt."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from .device import Gpu

IN_FLIGHT = 3
"""Steps enqueued and not finished. Two would do on an idle host; one more bridges a callback."""


class InFlightLimiter:
    """Runs a callback for each finished step, in order, without waiting for the step that was just enqueued.

    Args:
        gpu: whose stream it is.
        finished: called with the number of each finished step.
        depth: steps in flight; buffers that steps use in turn need as many slots.
    """

    def __init__(self, gpu: Gpu, finished: Callable[[int], None], depth: int = IN_FLIGHT) -> None:
        self._gpu, self._finished, self.depth = gpu, finished, depth
        self._flying: deque[tuple[int, Any]] = deque()
        self._first: Any | None = None
        self._last: Any | None = None

    def start(self) -> None:
        """Mark the time from which :meth:`seconds` counts."""
        self._first = self._last = self._gpu.record(self._gpu.stream)

    def make_room(self) -> None:
        """Before a step is enqueued: wait until one of the slots is free, and tell what has finished meanwhile."""
        while len(self._flying) >= self.depth or (self._flying and self._flying[0][1].is_done):
            self._land()

    def enqueued(self, step: int) -> None:
        """After a step was enqueued."""
        self._last = self._gpu.record(self._gpu.stream)
        self._flying.append((step, self._last))

    def drain(self) -> None:
        """Wait for all of them."""
        while self._flying:
            self._land()

    def seconds(self) -> float:
        """GPU time from :meth:`start` to the end of the last step; after :meth:`drain`."""
        if self._first is None or self._first is self._last:
            return 0.0
        return float(self._last - self._first) / 1000

    def _land(self) -> None:
        step, event = self._flying.popleft()
        event.sync()
        self._finished(step)
