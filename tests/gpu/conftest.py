"""A stand-in for the GPU: device memory in NumPy arrays, streams that run late, the kernels' own source through g++.

Work is queued and runs only when something waits for it, so that reading a result too early, reusing a buffer too soon
or forgetting to order two streams gives garbage here as it would on a GPU. Stages run in ONNX Runtime on the CPU.

In a process that test_driver_on_host.py starts, with a driver that runs on the host, the real driver layer takes the
stand-in's place, cuda.core included.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from consisti2v_rt.kernels.cuda.compile import compile_cubin
from consisti2v_rt.kernels.cuda.sources import SOURCES
from consisti2v_rt.runtime import backends
from consisti2v_rt.runtime.bundle.stage_graphs import Availability, has_graphs, stage_graph
from consisti2v_rt.runtime.gpu import entry, frame_init
from consisti2v_rt.runtime.gpu.device import Block, Gpu
from consisti2v_rt.runtime.gpu.device_session import DeviceSession
from consisti2v_rt.runtime.gpu.kernels import GpuKernels
from consisti2v_rt.runtime.gpu.memory import STORAGE, DeviceArray, SharedScratch, WeightTurns

GARBAGE = 0xFF  # NaN in every float type


class FakeEvent:
    def __init__(self, stream: FakeStream, place: int) -> None:
        self._stream, self._place = stream, place

    @property
    def is_done(self) -> bool:
        return self._stream.done >= self._place

    def sync(self) -> None:
        self._stream.run_until(self._place)

    def __sub__(self, other: FakeEvent) -> float:
        assert self.is_done and other.is_done, "asked for the time between events that are not over"
        return 1.0


class FakeStream:
    """A queue of work that runs when somebody waits."""

    def __init__(self, gpu: FakeGpu, number: int) -> None:
        self._gpu, self.handle = gpu, number
        self._queue: list[Callable[[], None]] = []
        self.enqueued = self.done = 0

    def push(self, work: Callable[[], None]) -> None:
        if self._gpu.captured is not None:
            if self is self._gpu.stream:
                self._gpu.captured.append(work)
            return
        self._queue.append(work)
        self.enqueued += 1

    def run_until(self, place: int) -> None:
        assert self._gpu.captured is None, "waited while capturing"
        while self.done < place:
            self.done += 1
            self._queue.pop(0)()

    def sync(self) -> None:
        self.run_until(self.enqueued)

    def wait(self, event: FakeEvent) -> None:
        self.push(event.sync)


class FakeGraph:
    def __init__(self, work: list[Callable[[], None]]) -> None:
        self.work = work

    def launch(self, stream: FakeStream) -> None:
        for item in self.work:
            stream.push(item)


class FakeGpu:
    """The methods of :class:`consisti2v_rt.runtime.gpu.device.Gpu`."""

    name, compute_capability = "stand-in", "8.9"

    def __init__(self, host: Any) -> None:
        self._host = host
        self.captured: list[Callable[[], None]] | None = None
        self.streams: list[FakeStream] = []
        self.stream = self.new_stream()
        self._blocks: list[tuple[int, int, Any]] = []
        self.launches: list[str] = []
        self.captures = 0
        self.total, self.used = 8 << 30, 0

    def make_current(self) -> None: ...

    def free_and_total(self) -> tuple[int, int]:
        return self.total - self.used, self.total

    def new_stream(self) -> FakeStream:
        self.streams.append(FakeStream(self, len(self.streams) + 1))
        return self.streams[-1]

    def wait(self, stream: FakeStream, event: FakeEvent) -> None:
        stream.wait(event)

    def record(self, stream: FakeStream) -> FakeEvent:
        return FakeEvent(stream, stream.enqueued)

    def allocate(self, nbytes: int) -> Block:
        assert self.captured is None, "allocated while capturing"
        memory = np.full(nbytes + 512, GARBAGE, np.uint8)
        address = -(-memory.ctypes.data // 256) * 256
        # Kept for good: work that runs late still uses memory that its owner has let go.
        self._blocks.append((address, nbytes, memory))
        return Block(address, nbytes, memory)

    def allocate_pinned(self, nbytes: int) -> tuple[Block, Any]:
        block = self.allocate(nbytes)
        return block, np.frombuffer((ctypes.c_ubyte * nbytes).from_address(block.address), np.uint8)

    def _is_own(self, address: int) -> bool:
        return any(start <= address < start + nbytes for start, nbytes, _ in self._blocks)

    def copy(self, target: int, source: int, nbytes: int, stream: FakeStream) -> None:
        # Late, from ordinary host memory too: the driver may read that before the call returns, or not.
        stream.push(lambda: ctypes.memmove(target, source, nbytes) and None)

    def fill(self, address: int, nbytes: int, byte: int, stream: FakeStream) -> None:
        stream.push(lambda: ctypes.memset(address, byte, nbytes) and None)

    def capture(self, work: Callable[[], None]) -> FakeGraph:
        self.captured = []
        self.captures += 1
        try:
            work()
            return FakeGraph(self.captured)
        finally:
            self.captured = None

    def load_kernels(self, name: str, cubin: bytes) -> Any:
        assert cubin[:4] == b"\x7fELF"
        return FakeKernels(self, name)

    def run_kernel(self, name: str, entry_name: str, values: Mapping[str, Any]) -> None:
        call = SOURCES[name].entry_point(entry_name).call(**values)
        if call.is_empty:
            return
        cells = [np.array(np.uintp(value) if isinstance(value, int) else value) for value in call.values]
        pointers = (ctypes.c_void_p * len(cells))(*[cell.ctypes.data for cell in cells])
        launch = self._host.library(name)[f"launch_{entry_name}"]
        assert launch((ctypes.c_uint * 3)(*call.grid), ctypes.c_uint(call.threads), pointers, 0) == 0


class FakeKernels:
    def __init__(self, gpu: FakeGpu, name: str) -> None:
        self._gpu, self._name = gpu, name

    def launch(self, stream: FakeStream, entry_name: str, /, **values: Any) -> None:
        self._gpu.launches.append(entry_name)
        stream.push(lambda: self._gpu.run_kernel(self._name, entry_name, values))


class GpuOnHost(Gpu):
    """The real driver layer over a driver that runs on the host; counts what the tests ask about."""

    def __init__(self) -> None:
        super().__init__()
        self.captures, self.launches = 0, []

    def capture(self, work: Callable[[], None]) -> Any:
        self.captures += 1
        return super().capture(work)

    def load_kernels(self, name: str, cubin: bytes) -> Any:
        kernels = super().load_kernels(name, cubin)

        def launch(stream: Any, entry: str, /, **values: Any) -> None:
            self.launches.append(entry)
            kernels.launch(stream, entry, **values)

        return SimpleNamespace(launch=launch)


_host_functions: list[Any] = []
"""Kept for good: a captured one may run at any later time."""


def push(stream: Any, work: Callable[[], None]) -> None:
    """Let Python work at its place in the stream."""
    if isinstance(stream, FakeStream):
        stream.push(work)
        return
    from cuda.bindings import driver

    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: work())
    _host_functions.append(function)
    address = ctypes.cast(function, ctypes.c_void_p).value
    (status,) = driver.cuLaunchHostFunc(stream.handle, driver.CUhostFn(address), 0)
    assert status == driver.CUresult.CUDA_SUCCESS, status


def view(array: DeviceArray) -> Any:
    """A device array of the stand-in as NumPy sees it."""
    raw = (ctypes.c_ubyte * max(array.nbytes, 1)).from_address(array.address)
    return np.frombuffer(raw, np.uint8)[: array.nbytes].view(STORAGE[array.dtype]).reshape(array.shape)


class FakeTransform:
    """cuFFT's place: NumPy, at the time the stream gets there; the inverse unnormalised and its input spoilt."""

    def __init__(self, shape: tuple[int, int, int], batch: int, stream: FakeStream) -> None:
        self._half = (batch, *shape[:2], shape[2] // 2 + 1)
        self._real, self._stream = (batch, *shape), stream

    def _array(self, address: int, shape: tuple[int, ...], dtype: Any) -> Any:
        count = int(np.prod(shape))
        raw = (ctypes.c_ubyte * (count * np.dtype(dtype).itemsize)).from_address(address)
        return np.frombuffer(raw, dtype).reshape(shape)

    def forward(self, real: int, spectrum: int) -> None:
        def work() -> None:
            source = self._array(real, self._real, np.float32)
            self._array(spectrum, self._half, np.complex64)[...] = np.fft.rfftn(source, axes=(1, 2, 3))

        push(self._stream, work)

    def inverse(self, spectrum: int, real: int) -> None:
        def work() -> None:
            source = self._array(spectrum, self._half, np.complex64)
            result = np.fft.irfftn(source, s=self._real[1:], axes=(1, 2, 3), norm="forward")
            self._array(real, self._real, np.float32)[...] = result
            source[...] = np.nan

        push(self._stream, work)


class FakeSession(DeviceSession):
    """A stage in ONNX Runtime on the CPU, reading and writing "device memory" when its stream gets there."""

    _loaded: ClassVar[dict[Path, Any]] = {}

    def __init__(self, gpu: Any, turns: WeightTurns, path: Path, stage: Any, dims: Mapping[str, int]) -> None:
        import onnxruntime

        super().__init__(gpu, stage.inputs, stage.outputs)
        self._path, self._stage, self._turns = path, stage, turns
        if path not in self._loaded:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            self._loaded[path] = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._session = self._loaded[path]
        self.addresses: dict[str, DeviceArray] = {}
        self.runs = self.releases = 0
        self._turns.use(self)
        self.allocate(dims)

    def _set_sizes(self, dims: Mapping[str, int]) -> None: ...

    def _set_address(self, name: str, array: DeviceArray) -> None:
        self.addresses[name] = array

    def _enqueue(self, stream: Any) -> None:
        self._turns.use(self)
        arrays = dict(self.addresses)

        def work() -> None:
            self.runs += 1
            feed = {spec.name: view(arrays[spec.name]) for spec in self._stage.inputs}
            names = [spec.name for spec in self._stage.outputs]
            for name, value in zip(names, self._session.run(names, feed), strict=True):
                view(arrays[name])[...] = value

        push(stream, work)

    def with_dims(self, dims: Mapping[str, int]) -> FakeSession:
        return FakeSession(self._gpu, self._turns, self._path, self._stage, dims)

    def release(self) -> None:
        self._turns.leave(self)
        self.releases += 1

    @property
    def generation(self) -> tuple[int, ...]:
        return (self.releases,)


def _kernel_conftest() -> ModuleType:
    """The host machine of the kernels' own tests."""
    path = Path(__file__).parents[1] / "kernels" / "conftest.py"
    spec = importlib.util.spec_from_file_location("kernel_machines", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["kernel_machines"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def kernels_on_host(tmp_path_factory: pytest.TempPathFactory) -> Any:
    if shutil.which("g++") is None or "avx2" not in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        pytest.skip("needs g++ and an x86-64 CPU with AVX2, which run the CUDA kernels' own source")
    return _kernel_conftest().HostMachine(tmp_path_factory.mktemp("gpu_kernels"))


ON_HOST_DRIVER = "DRIVER_ON_HOST_KERNELS" in os.environ


@cache
def cubin(name: str) -> bytes:
    """What the driver takes; the stand-in only looks whether it is there, and compiling takes half a second each."""
    return compile_cubin(name, "sm_89") if ON_HOST_DRIVER else b"\x7fELF"


@pytest.fixture
def gpu(kernels_on_host: Any) -> Any:
    return GpuOnHost() if ON_HOST_DRIVER else FakeGpu(kernels_on_host)


@pytest.fixture
def fake_cuda(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """``device="cuda"`` runs on the stand-in."""
    turns = WeightTurns(gpu)

    def load(bundle: Any, stage: str, dims: Mapping[str, int], threads: int | None, precision: str) -> FakeSession:
        spec = stage_graph(bundle, stage, precision)
        return FakeSession(gpu, turns, bundle.file(spec.file), spec, dims)

    stand_in = backends.Backend(
        "stand-in", "Stand-in", "cuda", ("fp32",), True, lambda: Availability(True, "stand-in"), has_graphs, load
    )
    monkeypatch.setattr(backends, "BACKENDS", (stand_in, *backends.BACKENDS))
    monkeypatch.setattr(entry, "shared", lambda: (gpu, SharedScratch(gpu), turns))
    monkeypatch.setattr(frame_init, "RealTransform", FakeTransform)
    monkeypatch.setattr(GpuKernels, "_cubin", lambda self, name: cubin(name))
    yield gpu


@pytest.fixture
def device_view() -> Callable[[DeviceArray], Any]:
    """Array on the stand-in -> NumPy array over its memory."""
    return view


@pytest.fixture
def fill_with_nan() -> Callable[[Any, DeviceArray], None]:
    """Overwrite an array at its place in a stream."""
    return lambda stream, array: push(stream, lambda: view(array).fill(np.nan))


@pytest.fixture(scope="session")
def demo_bundle() -> Path:
    """In this folder: the demo bundle's stages with random weights. The demo model's own start was set by hand, with
    numbers that half precision does not hold.
    """
    return Path(__file__).parents[1] / "data" / "untrained_bundle"
