"""GPU time of enqueued work: captured as a CUDA graph, replayed between two events, so that launching costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

REPEATS = 20
"""How often the work stands in one graph: an event's resolution is half a microsecond."""


def checked(result: tuple[Any, ...]) -> Any:
    """The value of a driver call.

    Raises:
        RuntimeError: the driver returned an error.
    """
    error, *values = result
    if error.value != 0:
        raise RuntimeError(f"CUDA driver: {error.name}")
    return values[0] if values else None


class Stopwatch:
    """Times work on one stream of the current device."""

    def __init__(self, stream: Any) -> None:
        from cuda.bindings import driver

        self._driver = driver
        self._stream = driver.CUstream(int(stream.handle))
        self._start, self._end = (checked(driver.cuEventCreate(0)) for _ in range(2))

    def upload(self, array: NDArray[Any], address: int) -> None:
        """Copy an array to the device, and wait until it is there."""
        contiguous = np.ascontiguousarray(array)
        # On this stream: one that does not wait for the default stream would not see a plain copy's end.
        checked(self._driver.cuMemcpyAsync(address, contiguous.ctypes.data, contiguous.nbytes, self._stream))
        checked(self._driver.cuStreamSynchronize(self._stream))

    def measure(self, enqueue: Callable[[], Any], rounds: int) -> list[float]:
        """Microseconds of one ``enqueue()`` in each round, the first rounds after a warm-up.

        Args:
            enqueue: puts the work on this stream; it must not wait for the GPU.
            rounds: how many times the graph of ``REPEATS`` such works is timed.
        """
        driver, stream = self._driver, self._stream
        for _ in range(3):
            enqueue()
        checked(driver.cuStreamSynchronize(stream))
        # Relaxed: torch may ask the driver for memory while it is being captured.
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        checked(driver.cuStreamBeginCapture(stream, mode))
        for _ in range(REPEATS):
            enqueue()
        graph = checked(driver.cuStreamEndCapture(stream))
        runnable = checked(driver.cuGraphInstantiate(graph, 0))
        for _ in range(3):
            checked(driver.cuGraphLaunch(runnable, stream))
        times = []
        for _ in range(rounds):
            checked(driver.cuEventRecord(self._start, stream))
            checked(driver.cuGraphLaunch(runnable, stream))
            checked(driver.cuEventRecord(self._end, stream))
            checked(driver.cuEventSynchronize(self._end))
            times.append(1000 * checked(driver.cuEventElapsedTime(self._start, self._end)) / REPEATS)
        checked(driver.cuGraphExecDestroy(runnable))
        checked(driver.cuGraphDestroy(graph))
        return times
