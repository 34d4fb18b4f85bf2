"""Time budget and learning rate of a training that stops by the clock."""

from __future__ import annotations

import math
import time
from pathlib import Path

_PAUSE = 30.0
"""Seconds between two looks at the clock from which on the training counts as having been stopped."""


class Clock:
    """Counts the time a training has had, over restarts, against its budget; pauses do not count."""

    def __init__(self, minutes: float, spent: float = 0.0) -> None:
        self.budget = 60 * minutes
        self._counted = spent
        self._last = time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds, earlier runs included."""
        now = time.monotonic()
        passed, self._last = now - self._last, now
        self._counted += passed if passed < _PAUSE else 0.0
        return self._counted

    @property
    def progress(self) -> float:
        """0 at the start, 1 when the budget is used up."""
        return min(self.spent / self.budget, 1.0)


def learning_rate(peak: float, step: int, progress: float, warmup: int = 50) -> float:
    """Linear warm-up over `warmup` steps, then a cosine down to a twentieth of the peak at the end of the budget."""
    cosine = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))
    return peak * cosine * min(1.0, (step + 1) / warmup)


def log_line(path: Path, line: str, echo: bool) -> None:
    """Append a line to a log, and show it."""
    with path.open("a", encoding="utf-8") as log:
        log.write(line + "\n")
    if echo:
        print(line, flush=True)
