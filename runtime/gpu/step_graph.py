"""A denoising step as one CUDA graph: enqueued once as it is, captured, checked, then replayed for every step.

The check is there because a capture can fail silently: work on another stream or device leaves an EMPTY graph. So the
outputs are poisoned with NaN, the graph is replayed on the same input as the eager step, and both results are compared.
A graph that fails is not used; the loop then runs without, and the reason is kept. The check costs two steps and is
made once for each engine and shape.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import CancelledError, UserError, first_line
from ..session import Array
from ..stage_failure import is_finite
from .device import Gpu, Graph
from .memory import DeviceArray, GpuMemory

_log = logging.getLogger("consisti2v_rt")
# The same kernels on the same input: what differs at all comes from atomic additions in another order.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class StepGraph:
    """A captured step or stage, or why there is none."""

    graph: Graph | None
    reason: str = ""
    """Why steps run without a graph; empty where they run with it."""


def capture_step(gpu: Gpu, enqueue: Callable[[], None]) -> StepGraph:
    """Capture a step that was checked before on the same engine; it does not run now.

    Args:
        enqueue: puts the step's work on the GPU's stream; the same work on the same memory each time.
    """
    try:
        return StepGraph(gpu.capture(enqueue))
    except (CancelledError, KeyboardInterrupt):
        raise
    except Exception as error:
        return _without(f"the step cannot be captured ({first_line(error)})")


def capture_and_check(
    gpu: Gpu,
    enqueue: Callable[[], None],
    *,
    changes: Sequence[DeviceArray],
    poisoned: Sequence[DeviceArray],
    compared: Sequence[DeviceArray],
) -> StepGraph:
    """Run a step once as it is, capture it, replay it, and compare; all arrays are afterwards what they were before.

    Args:
        changes: every array that the step changes: put back after the check.
        poisoned: those of them that the step writes in full, whatever they held.
        compared: the result, compared between eager and graph.

    Raises:
        UserError: the step's result is not finite.
    """
    memory = GpuMemory(gpu)
    before = [memory.download(array) for array in changes]

    def put_back() -> None:
        for array, host in zip(changes, before, strict=True):
            memory.upload(host, array)
        gpu.stream.sync()

    # The first run compiles kernels and allocates: that must not be captured.
    enqueue()
    eager = [memory.download(array) for array in compared]
    put_back()
    if not all(is_finite(result) for result in eager):
        raise UserError(
            "the first denoising step gave numbers that are not finite: try another --precision, and check the "
            "bundle with 'consisti2v inspect'."
        )
    captured = capture_step(gpu, enqueue)
    if captured.graph is None:
        return captured
    for array in poisoned:
        memory.fill(array, 255)
    captured.graph.launch(gpu.stream)
    replayed = [memory.download(array) for array in compared]
    put_back()
    for name, expected, result in zip(("prediction", "latents"), eager, replayed, strict=False):
        problem = difference(expected, result)
        if problem:
            return _without(f"the captured step's {name} {problem}")
    return captured


def capture_and_compare(
    gpu: Gpu, enqueue: Callable[[], None], what: str, outputs: Mapping[str, tuple[DeviceArray, Array]]
) -> StepGraph:
    """Capture a stage whose inputs are unchanged since it ran as it is, replay it, and compare with what that gave.

    Args:
        enqueue: puts the stage's work on the GPU's stream.
        what: the stage, for the warning where its graph is not used.
        outputs: name -> the array that the stage writes in full, and what it held after the eager run, all finite.
    """
    try:
        graph = gpu.capture(enqueue)
    except (CancelledError, KeyboardInterrupt):
        raise
    except Exception as error:
        return _without(f"it cannot be captured ({first_line(error)})", f"the {what} runs")
    memory = GpuMemory(gpu)
    for array, _ in outputs.values():
        memory.fill(array, 255)
    graph.launch(gpu.stream)
    for name, (array, expected) in outputs.items():
        problem = difference(expected, memory.download(array))
        if problem:
            return _without(f"the captured {name} {problem}", f"the {what} runs")
    return StepGraph(graph)


def _without(reason: str, what: str = "steps run") -> StepGraph:
    _log.warning("%s without a CUDA graph: %s", what, reason)
    return StepGraph(None, reason)


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
