"""Machines that run a CUDA kernel: this CPU, through a thin host shim, and a GPU where there is one.

Both take a kernel's arguments by name as NumPy arrays and numbers, and give back copies of the arrays it wrote. Every
array lies between guards that must stay as they were, and arrays that are not named as written must not change.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consisti2v_rt.kernels.cuda.compile import compile_cubin, kernel_file
from consisti2v_rt.kernels.cuda.launch import Kernels
from consisti2v_rt.kernels.cuda.sources import FOLDER, SOURCES
from consisti2v_rt.runtime.gpu.device import probe

SHIM = Path(__file__).parent / "cuda_host"
FLAGS = ["-O2", "-std=c++17", "-fPIC", "-shared", "-ffp-contract=off", "-mf16c", "-mfma", "-mavx2"]
# Libraries of different kernels live in one process: nothing of one may be taken for the other's.
FLAGS += ["-fvisibility=hidden", "-fno-gnu-unique", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
# A kernel ignores sizes that the grid already holds, and its threads compare like the hardware: unsigned with int.
FLAGS += ["-Wno-unused-parameter", "-Wno-sign-compare"]
GUARD = 256
GUARD_BYTE = 0xA5


def source_of(entry: str) -> str:
    """Name of the source that has this entry point."""
    (name,) = (name for name, entries in SOURCES.items() if entry in entries)
    return name


class Machine:
    """Runs entry points; what is common to both machines."""

    def run(self, entry: str, written: tuple[str, ...], **values: Any) -> tuple[np.ndarray, ...]:
        """Launch `entry`; arrays of `values` are passed as pointers, each a copy of its own. Returns those written."""
        arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        assert set(written) <= arrays.keys()
        guarded = {name: np.full(2 * GUARD + array.nbytes, GUARD_BYTE, np.uint8) for name, array in arrays.items()}
        for name, array in arrays.items():
            guarded[name][GUARD : GUARD + array.nbytes] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        self.execute(entry, guarded, {name: value for name, value in values.items() if name not in arrays})
        results = {}
        for name, array in arrays.items():
            before, inner, after = np.split(guarded[name], [GUARD, GUARD + array.nbytes])
            assert (before == GUARD_BYTE).all() and (after == GUARD_BYTE).all(), f"{entry} wrote outside {name}"
            results[name] = inner.view(array.dtype).reshape(array.shape)
            if name not in written:
                same = results[name].tobytes() == np.ascontiguousarray(array).tobytes()
                assert same, f"{entry} changed its input {name}"
        return tuple(results[name].copy() for name in written)

    def execute(self, entry: str, guarded: dict[str, np.ndarray], numbers: dict[str, Any]) -> None:
        raise NotImplementedError


class HostMachine(Machine):
    """The kernel's own source, compiled by g++."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._libraries: dict[str, ctypes.CDLL] = {}

    def library(self, name: str) -> ctypes.CDLL:
        if name not in self._libraries:
            file = kernel_file(name)
            entries = "\n".join(f"HOST_ENTRY({entry})" for entry in SOURCES[name])
            unit = self._folder / f"{name}.cpp"
            unit.write_text(f'#include "host_shim.h"\n#include "{file}"\n{entries}\n', encoding="utf-8")
            text = file.read_text(encoding="utf-8")
            waits = ["-DCUDA_HOST_FIBERS"] if "__syncthreads" in text or "__shfl" in text else []
            library = unit.with_suffix(".so")
            command = ["g++", *FLAGS, *waits, f"-I{SHIM}", f"-I{FOLDER}", str(unit), "-o", str(library)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
            self._libraries[name] = ctypes.CDLL(str(library))
        return self._libraries[name]

    def signature(self, entry: str) -> str:
        """The entry point's argument types as the compiler sees them, a letter each."""
        function = self.library(source_of(entry))[f"signature_{entry}"]
        function.restype = ctypes.c_char_p
        return bytes(function()).decode()

    def execute(self, entry: str, guarded: dict[str, np.ndarray], numbers: dict[str, Any]) -> None:
        """Twice, with the threads in ascending and in descending order: a race would show."""
        again = {key: array.copy() for key, array in guarded.items()}
        self.launch(entry, guarded, numbers, backwards=False)
        self.launch(entry, again, numbers, backwards=True)
        for key, array in guarded.items():
            assert array.tobytes() == again[key].tobytes(), f"{entry}: {key} depends on the order of the threads"

    def launch(self, entry: str, guarded: dict[str, np.ndarray], numbers: dict[str, Any], backwards: bool) -> None:
        name = source_of(entry)
        addresses = {key: array.ctypes.data + GUARD for key, array in guarded.items()}
        call = SOURCES[name][entry].call(**addresses, **numbers)
        if 0 in call.grid:
            return
        values = [np.uintp(value) if isinstance(value, int) else value for value in call.values]
        cells = [np.array(value) for value in values]
        pointers = (ctypes.c_void_p * len(cells))(*[cell.ctypes.data for cell in cells])
        grid = (ctypes.c_uint * 3)(*call.grid)
        outcome = self.library(name)[f"launch_{entry}"](grid, ctypes.c_uint(call.threads), pointers, int(backwards))
        assert outcome == 0, f"{entry}: threads of a block wait at different places"


class GpuMachine(Machine):
    """The kernel's cubin on a GPU."""

    def __init__(self) -> None:
        from cuda.core import Device

        self._device = Device(0)
        self._device.set_current()
        self._stream = self._device.create_stream()
        capability = self._device.compute_capability
        architecture = f"sm_{capability.major}{capability.minor}"
        self._kernels = Kernels(self._stream, lambda name: compile_cubin(name, architecture))

    def execute(self, entry: str, guarded: dict[str, np.ndarray], numbers: dict[str, Any]) -> None:
        from cuda.bindings import driver

        memory = {key: self._device.allocate(array.nbytes, stream=self._stream) for key, array in guarded.items()}
        self._stream.sync()
        for key, array in guarded.items():
            handle = self._stream.handle
            (error,) = driver.cuMemcpyAsync(int(memory[key].handle), array.ctypes.data, array.nbytes, handle)
            assert error == driver.CUresult.CUDA_SUCCESS, error
        addresses = {key: int(buffer.handle) + GUARD for key, buffer in memory.items()}
        self._kernels.launch(entry, **addresses, **numbers)
        self._stream.sync()
        for key, array in guarded.items():
            (error,) = driver.cuMemcpyDtoH(array.ctypes.data, int(memory[key].handle), array.nbytes)
            assert error == driver.CUresult.CUDA_SUCCESS, error
            memory[key].close()


@pytest.fixture(scope="session")
def host_machine(tmp_path_factory: pytest.TempPathFactory) -> HostMachine:
    if shutil.which("g++") is None:
        pytest.skip("needs g++, which compiles the CUDA kernels for this CPU")
    flags = Path("/proc/cpuinfo")
    if not flags.is_file() or not {"avx2", "f16c", "fma"} <= set(flags.read_text().split()):
        pytest.skip("needs an x86-64 CPU with AVX2, F16C and FMA, on Linux")
    return HostMachine(tmp_path_factory.mktemp("cuda_host"))


@pytest.fixture(scope="session")
def gpu_machine() -> GpuMachine:
    status = probe()
    if not status.found:
        pytest.skip(f"needs an NVIDIA GPU: {status.reason}")
    return GpuMachine()


@pytest.fixture(params=["host", pytest.param("gpu", marks=pytest.mark.gpu)])
def machine(request: pytest.FixtureRequest) -> Machine:
    """Every test of a kernel runs its very source on the CPU and, where there is one, on the GPU."""
    found: Machine = request.getfixturevalue(f"{request.param}_machine")
    return found


@pytest.fixture(scope="session")
def element_types() -> dict[str, np.dtype]:
    """Suffix of an entry point -> NumPy's dtype of its elements."""
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    return {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16), "bf16": np.dtype(bfloat16)}


@pytest.fixture
def normal(request: pytest.FixtureRequest) -> Iterator[Callable[..., np.ndarray]]:
    """Draws standard normal float32 arrays of a shape; the test's name is the seed, the same on both machines."""
    generator = np.random.default_rng(list(request.node.name.replace("gpu", "host").encode()))

    def draw(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape, dtype=np.float32)

    yield draw
