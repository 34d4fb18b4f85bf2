"""The GPU: whether there is one, and the few driver calls that the rest of this folder is built on.

Everything that touches the driver is a method of :class:`Gpu`, but for the launch of a kernel.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from ..install import install_hint


@dataclass(frozen=True)
class GpuStatus:
    """What was found when a GPU was looked for."""

    found: bool
    reason: str
    """One sentence: the GPU's name and driver, or why there is none."""
    name: str = ""
    compute_capability: str = ""
    """As "8.9"."""
    total_bytes: int = 0


@dataclass(frozen=True)
class Block:
    """A piece of memory, freed when nothing refers to it any more."""

    address: int
    nbytes: int
    owner: Any


@lru_cache(maxsize=1)
def probe() -> GpuStatus:
    """Look for GPU 0 (``CUDA_VISIBLE_DEVICES`` says which that is), once in a process.

    Once, because cuda.core can hang when it is asked again after it found no driver.
    """
    if not _has_driver():
        return GpuStatus(False, "no NVIDIA driver is installed")
    try:
        import cuda.core
        from cuda.core import Device
    except ImportError as error:
        return GpuStatus(False, f"cuda-core 1.0 or later is not installed ({error}): {install_hint('rtx')}")
    # Earlier ones import as well, and name things otherwise.
    if int(cuda.core.__version__.split(".")[0]) < 1:
        return GpuStatus(
            False, f"cuda-core {cuda.core.__version__} is installed, 1.0 or later is needed: {install_hint('rtx')}"
        )
    try:
        device = Device(0)
        device.set_current()
        capability = f"{device.compute_capability.major}.{device.compute_capability.minor}"
        total = _memory_info()[1]
    except Exception as error:
        # A missing driver, a driver without a GPU, and a GPU in use exclusively all raise different classes.
        return GpuStatus(False, f"no NVIDIA GPU can be used ({_first_sentence(error)})")
    reason = f"{device.name}, compute capability {capability}, {total / 2**30:.1f} GiB"
    return GpuStatus(True, reason, device.name, capability, total)


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them; empty where none can be used."""
    if not probe().found:
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    from cuda.bindings import driver

    (count,) = _check(driver.cuDeviceGetCount())
    return [str(number) for number in range(count)]


def _has_driver() -> bool:
    """Whether the driver's library can be loaded; costs nothing where it cannot, unlike importing cuda.core."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def _first_sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    return text.split(". ")[0].rstrip(".")


def _check(result: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values behind the status of a ``cuda.bindings.driver`` call.

    Raises:
        UserError: the call failed.
    """
    status, *values = result
    if int(status) != 0:
        raise UserError(
            f"the CUDA driver reports {status.name}: start the program again; if that repeats, use another --device "
            "and check the GPU with nvidia-smi."
        )
    return tuple(values)


def _memory_info() -> tuple[int, int]:
    """Free and total bytes of the current device."""
    from cuda.bindings import driver

    free, total = _check(driver.cuMemGetInfo())
    return int(free), int(total)


class Gpu:
    """GPU 0 with the stream that everything runs on unless said otherwise.

    Raises:
        UserError: there is none.
    """

    def __init__(self) -> None:
        status = probe()
        if not status.found:
            raise UserError(f"device cuda cannot be used: {status.reason}.")
        from cuda.core import Device, LegacyPinnedMemoryResource

        self.name, self.compute_capability = status.name, status.compute_capability
        self._device = Device(0)
        self._device.set_current()
        self._pinned = LegacyPinnedMemoryResource()
        self.stream = self.new_stream()

    def make_current(self) -> None:
        """Let the calling thread use the GPU; the driver keeps this per thread."""
        self._device.set_current()

    def free_and_total(self) -> tuple[int, int]:
        """Bytes of device memory."""
        return _memory_info()

    def driver_version(self) -> str:
        """The newest CUDA that the driver knows, as "13.0"."""
        from cuda.bindings import driver

        (version,) = _check(driver.cuDriverGetVersion())
        return f"{version // 1000}.{version % 1000 // 10}"

    # -- streams and events --------------------------------------------------------------------------------------------

    def new_stream(self) -> Any:
        """A stream that does not wait for the default one."""
        return self._device.create_stream()

    def wait(self, stream: Any, event: Any) -> None:
        """Let a stream wait for an event of another; the host goes on."""
        stream.wait(event)

    def record(self, stream: Any) -> Any:
        """An event behind the work enqueued so far: ``sync()``, ``is_done``, and ``later - earlier`` milliseconds."""
        from cuda.core import EventOptions

        # Blocking: the waiting thread sleeps, so that a video encoder has the processor.
        return stream.record(options=EventOptions(timing_enabled=True, blocking_sync=True))

    # -- memory --------------------------------------------------------------------------------------------------------

    def allocate(self, nbytes: int) -> Block:
        """Device memory, freed in the order of :attr:`stream`.

        Raises:
            UserError: the GPU has no room for it.
        """
        try:
            buffer = self._device.allocate(nbytes, stream=self.stream)
        except Exception as error:
            free, total = self.free_and_total()
            raise UserError(
                f"the GPU has no room for {nbytes / 2**20:.0f} MiB more ({free / 2**20:.0f} of {total / 2**20:.0f} MiB "
                f"are free; {_first_sentence(error)}): close other programs that use it, or pass --low-vram."
            ) from None
        return Block(int(buffer.handle), nbytes, buffer)

    def allocate_pinned(self, nbytes: int) -> tuple[Block, NDArray[np.uint8]]:
        """Host memory that the GPU copies to and from without the processor, and its bytes as an array."""
        buffer = self._pinned.allocate(nbytes)
        address = int(buffer.handle)
        view = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))
        return Block(address, nbytes, buffer), view

    def copy(self, target: int, source: int, nbytes: int, stream: Any) -> None:
        """Copy between addresses, host or device, in the order of the stream.

        From pinned memory this returns at once; from ordinary memory it may (CUDA's "API synchronization behavior"), so
        what is read must live until the stream got there. Ordinary memory is written when the stream is waited for.
        """
        from cuda.bindings import driver

        _check(driver.cuMemcpyAsync(target, source, nbytes, stream.handle))

    def copy_rows(self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, rows: int) -> None:
        """Copy `rows` pieces of `width` bytes, a pitch from one to the next, in the order of :attr:`stream`."""
        from cuda.bindings import driver

        shape = driver.CUDA_MEMCPY2D()
        shape.srcMemoryType = shape.dstMemoryType = driver.CUmemorytype.CU_MEMORYTYPE_DEVICE
        shape.srcDevice, shape.srcPitch = source, source_pitch
        shape.dstDevice, shape.dstPitch = target, target_pitch
        shape.WidthInBytes, shape.Height = width, rows
        _check(driver.cuMemcpy2DAsync(shape, self.stream.handle))

    def fill(self, address: int, nbytes: int, byte: int, stream: Any) -> None:
        """Set every byte."""
        from cuda.bindings import driver

        _check(driver.cuMemsetD8Async(address, byte, nbytes, stream.handle))

    # -- graphs --------------------------------------------------------------------------------------------

    def capture(self, work: Callable[[], None]) -> Graph:
        """What `work` enqueues on :attr:`stream`, as a graph; nothing of it runs now.

        Garbage is collected before and not meanwhile: it may hold device memory, which is freed on the stream.

        Raises:
            Exception: whatever `work` raises, or the driver where it does something that cannot be captured.
        """
        from cuda.bindings import driver

        gc.collect()
        # Not by cuda.core's builder: what it does after an invalidated capture destroys a graph that is gone.
        stream = self.stream.handle
        # Relaxed: a runtime may allocate or query on the way; what that breaks, the check of the graph finds.
        _check(driver.cuStreamBeginCapture(stream, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED))
        collects = gc.isenabled()
        gc.disable()
        try:
            work()
        except BaseException:
            # End the capture in any state, and report the first error, not one of ending it.
            status, graph = driver.cuStreamEndCapture(stream)
            if int(status) == 0:
                driver.cuGraphDestroy(graph)
            raise
        finally:
            if collects:
                gc.enable()
        (graph,) = _check(driver.cuStreamEndCapture(stream))
        try:
            return Graph(*_check(driver.cuGraphInstantiate(graph, 0)))
        finally:
            driver.cuGraphDestroy(graph)


class Graph:
    """Captured work."""

    def __init__(self, executable: Any) -> None:
        self._executable = executable

    def launch(self, stream: Any) -> None:
        """Run it in the order of the stream; returns at once."""
        from cuda.bindings import driver

        _check(driver.cuGraphLaunch(self._executable, stream.handle))

    def __del__(self) -> None:
        # At the interpreter's end the module may be gone, and the driver with it.
        with suppress(Exception):
            from cuda.bindings import driver

            driver.cuGraphExecDestroy(self._executable)


@lru_cache(maxsize=1)
def open_gpu() -> Gpu:
    """The one :class:`Gpu` of the process: all sessions share its stream, and with it their scratch memory."""
    return Gpu()
