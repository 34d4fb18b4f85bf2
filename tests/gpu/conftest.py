"""What stands in for a GPU: a driver that runs on the host; for TensorRT, ONNX Runtime on the CPU; for cuFFT, NumPy.

test_driver_on_host.py starts a process with that driver, in which the tests with the fixture ``gpu`` run; elsewhere
they are skipped. Work is queued there and runs only when something waits for it, so that reading a result too early,
reusing a buffer too soon or forgetting to order two streams gives garbage as it would on a GPU.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest

from consisti2v_rt.kernels.cuda.compile import compile_cubin
from consisti2v_rt.runtime import backends
from consisti2v_rt.runtime.bundle.stage_graphs import Availability, has_graphs, stage_graph
from consisti2v_rt.runtime.gpu import entry, frame_init
from consisti2v_rt.runtime.gpu.device import Gpu
from consisti2v_rt.runtime.gpu.device_session import DeviceSession
from consisti2v_rt.runtime.gpu.kernels import GpuKernels
from consisti2v_rt.runtime.gpu.memory import STORAGE, DeviceArray, SharedWorkspace, WeightResidency

ON_HOST_DRIVER = "DRIVER_ON_HOST_KERNELS" in os.environ


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The fixture ``gpu`` is the driver on the host: what asks for it runs in the process with that driver alone."""
    here = Path(__file__).parent
    own = [item for item in items if here in item.path.parents]
    needs = [item for item in own if "gpu" in getattr(item, "fixturenames", ())]
    marked = [item for item in own if item.get_closest_marker("gpu")]
    left_out = [item for item in own if item not in needs and item not in marked] if ON_HOST_DRIVER else needs
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


class GpuOnHost(Gpu):
    """The driver layer over a driver that runs on the host; counts what the tests ask about."""

    def __init__(self) -> None:
        self.streams: list[Any] = []
        super().__init__()
        self.captures, self.capturing = 0, False
        self.launches: list[str] = []

    def new_stream(self) -> Any:
        self.streams.append(super().new_stream())
        return self.streams[-1]

    def capture(self, work: Callable[[], None]) -> Any:
        self.captures += 1
        self.capturing = True
        try:
            return super().capture(work)
        finally:
            self.capturing = False

    def is_idle(self) -> bool:
        """Whether nothing is still to run on the other streams; on its own stream memory is freed in order."""
        from cuda.bindings import driver

        others = self.streams[1:]
        return all(driver.cuStreamQuery(stream.handle)[0] == driver.CUresult.CUDA_SUCCESS for stream in others)


_host_functions: list[Any] = []
"""Kept for good: a captured one may run at any later time."""


def push(stream: Any, work: Callable[[], None]) -> None:
    """Let Python work at its place in the stream."""
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

    def __init__(self, shape: tuple[int, int, int], batch: int, stream: Any) -> None:
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

    def __init__(self, gpu: Any, residency: WeightResidency, path: Path, stage: Any, dims: Mapping[str, int]) -> None:
        import onnxruntime

        super().__init__(gpu, stage.inputs, stage.outputs)
        self._path, self._stage, self._turns = path, stage, residency
        if path not in self._loaded:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            self._loaded[path] = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._session = self._loaded[path]
        self.addresses: dict[str, DeviceArray] = {}
        self.releases = 0
        self._turns.use(self)
        self.allocate(dims)

    def _set_sizes(self, dims: Mapping[str, int]) -> None: ...

    def _set_address(self, name: str, array: DeviceArray) -> None:
        self.addresses[name] = array

    def enqueue(self) -> None:
        self._turns.use(self)
        # Not the object itself: the function is kept for good.
        arrays, stage, session = dict(self.addresses), self._stage, self._session

        def work() -> None:
            feed = {spec.name: view(arrays[spec.name]) for spec in stage.inputs}
            names = [spec.name for spec in stage.outputs]
            for name, value in zip(names, session.run(names, feed), strict=True):
                view(arrays[name])[...] = value

        push(self._gpu.stream, work)

    def with_dims(self, dims: Mapping[str, int]) -> FakeSession:
        return FakeSession(self._gpu, self._turns, self._path, self._stage, dims)

    def release(self) -> None:
        self._turns.leave(self)
        self.releases += 1

    def prepare(self) -> None:
        self._turns.use(self)

    @property
    def _backend_version(self) -> tuple[int, ...]:
        return (self.releases,)

    context_version = 0


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


@cache
def cubin(name: str) -> bytes:
    return compile_cubin(name, "sm_89")


@pytest.fixture
def gpu() -> GpuOnHost:
    return GpuOnHost()


@pytest.fixture
def fake_cuda(gpu: GpuOnHost, monkeypatch: pytest.MonkeyPatch) -> GpuOnHost:
    """``device="cuda"`` runs on the driver on the host, its stages in ONNX Runtime on the CPU."""
    residency = WeightResidency(gpu)

    def load(bundle: Any, stage: str, dims: Mapping[str, int], threads: int | None, precision: str) -> FakeSession:
        spec = stage_graph(bundle, stage, precision)
        return FakeSession(gpu, residency, bundle.file(spec.file), spec, dims)

    stand_in = backends.Backend(
        "stand-in", "Stand-in", "cuda", ("fp32",), True, lambda: Availability(True, "stand-in"), has_graphs, load
    )
    launch = GpuKernels.launch

    def counted(self: GpuKernels, name: str, /, **values: Any) -> None:
        gpu.launches.append(name)
        launch(self, name, **values)

    monkeypatch.setattr(backends, "BACKENDS", (stand_in, *backends.BACKENDS))
    monkeypatch.setattr(entry, "shared", lambda: (gpu, SharedWorkspace(gpu), residency))
    monkeypatch.setattr(frame_init, "RealTransform", FakeTransform)
    monkeypatch.setattr(GpuKernels, "_cubin", lambda self, name: cubin(name))
    monkeypatch.setattr(GpuKernels, "launch", counted)
    return gpu


@pytest.fixture
def push_work() -> Callable[[Any, Callable[[], None]], None]:
    """Let Python work at its place in a stream."""
    return push


@pytest.fixture
def device_view() -> Callable[[DeviceArray], Any]:
    """Array on the stand-in -> NumPy array over its memory."""
    return view


@pytest.fixture(scope="session")
def demo_bundle() -> Path:
    """In this folder: the demo bundle's stages with random weights. The demo model's own start was set by hand, with
    numbers that half precision does not hold.
    """
    return Path(__file__).parents[1] / "data" / "untrained_bundle"
