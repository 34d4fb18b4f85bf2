"""The builder's progress."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .api import TensorRT


@dataclass(frozen=True)
class BuildProgress:
    """Where the builder is."""

    phase: str
    step: int
    steps: int


OnProgress = Callable[[BuildProgress], None]


def make_monitor(library: TensorRT, on_progress: OnProgress) -> Any:
    """A progress monitor that reports every phase and step; the builder calls it from threads of its own."""

    class Monitor(library.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}
            self._lock = threading.Lock()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self._steps[phase_name] = num_steps
                on_progress(BuildProgress(phase_name, 0, num_steps))

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                self._steps.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                on_progress(BuildProgress(phase_name, step + 1, self._steps.get(phase_name, 0)))
            return True

    return Monitor()
