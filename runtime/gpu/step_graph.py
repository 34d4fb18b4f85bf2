"""A denoising step as one CUDA graph: enqueued once as it is, captured, checked, then replayed for every step.

The check is there because a capture can go wrong without a word: work on another stream or device leaves an EMPTY
graph. So the outputs are poisoned with NaN, the graph is replayed on the same input as the eager step, and both
results are compared. A graph that fails is not used; the loop then runs as it is, and the reason is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...errors import CancelledError, UserError
from ..loop.finite import is_finite
from .device import Gpu
from .memory import DeviceArray, GpuMemory

_log = logging.getLogger("consisti2v_rt")
# The same kernels on the same input: what differs at all comes from atomic additions in another order.
_TOLERANCE = 1e-3


class StepGraph:
    """One step's work, replayable.

    Args:
        gpu: where it runs.
        enqueue: puts the step's work on the GPU's stream; the same work on the same memory each time.
        changes: every array that the step changes: put back after the check.
        poisoned: those of them that the step writes in full, whatever they held.
        compared: the result, compared between eager and graph.
        use_graph: False runs the step as it is.
    """

    def __init__(
        self,
        gpu: Gpu,
        enqueue: Callable[[], None],
        *,
        changes: Sequence[DeviceArray],
        poisoned: Sequence[DeviceArray],
        compared: Sequence[DeviceArray],
        use_graph: bool = True,
    ) -> None:
        self._gpu, self._memory, self._enqueue = gpu, GpuMemory(gpu), enqueue
        self._changes, self._poisoned, self._compared = changes, poisoned, compared
        self._graph: Any | None = None
        self.reason = "switched off"
        """Why steps run without a graph; empty where they run with it."""
        if use_graph:
            self._prepare()

    @property
    def captured(self) -> bool:
        return self._graph is not None

    def run(self) -> None:
        """Enqueue one step; returns at once."""
        if self._graph is not None:
            self._graph.launch(self._gpu.stream)
        else:
            self._enqueue()

    def _prepare(self) -> None:
        """Capture and check; all arrays are afterwards what they were before."""
        before = [self._memory.download(array) for array in self._changes]
        # The first run compiles kernels and allocates: that must not be captured.
        self._enqueue()
        eager = self._results()
        self._put_back(before)
        if not all(is_finite(result) for result in eager):
            raise UserError(
                "the first denoising step gave numbers that are not finite: try another --precision, and check the "
                "bundle with 'consisti2v inspect'."
            )
        try:
            graph = self._gpu.capture(self._enqueue)
        except (CancelledError, KeyboardInterrupt):
            raise
        except Exception as error:
            lines = str(error).splitlines() or [type(error).__name__]
            self._fall_back(f"the step cannot be captured ({lines[0]})")
            return
        for array in self._poisoned:
            self._memory.fill(array, 255)
        graph.launch(self._gpu.stream)
        replayed = self._results()
        self._put_back(before)
        for name, expected, result in zip(("prediction", "latents"), eager, replayed, strict=False):
            problem = difference(expected, result)
            if problem:
                self._fall_back(f"the captured step's {name} {problem}")
                return
        self._graph, self.reason = graph, ""

    def _results(self) -> list[Any]:
        return [self._memory.download(array) for array in self._compared]

    def _put_back(self, before: list[Any]) -> None:
        for array, host in zip(self._changes, before, strict=True):
            self._memory.upload(host, array)
        self._gpu.stream.sync()

    def _fall_back(self, reason: str) -> None:
        self.reason = reason
        _log.warning("steps run without a CUDA graph: %s", reason)


def difference(expected: Any, result: Any) -> str:
    """What is wrong with a replayed result, as the end of a sentence; empty where nothing is."""
    if not is_finite(result):
        return "was not written: the graph is empty, or works on other memory"
    if result.dtype == np.uint16:  # bfloat16 as bits
        expected, result = ((a.astype(np.uint32) << 16).view(np.float32) for a in (expected, result))
    expected, result = expected.astype(np.float64), result.astype(np.float64)
    scale = float(np.linalg.norm(expected))
    relative = float(np.linalg.norm(result - expected)) / (scale or 1.0)
    return "" if relative <= _TOLERANCE else f"differs from the eager one by {relative:.1e}"
