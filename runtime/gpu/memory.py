"""Arrays in device memory, pinned host arrays, and the scratch block that engines share."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .device import Block, Gpu

Array = NDArray[Any]

# How an array of each dtype lies in host memory. NumPy has no bfloat16: its bits travel as whole numbers.
STORAGE: dict[str, type[np.generic]] = {
    "float32": np.float32,
    "float64": np.float64,
    "float16": np.float16,
    "bfloat16": np.uint16,
    "int64": np.int64,
    "int32": np.int32,
    "uint64": np.uint64,
    "uint8": np.uint8,
}


@dataclass(frozen=True)
class DeviceArray:
    """A contiguous array in device memory. ``int(array)`` is its address, as kernels and sessions take it."""

    address: int
    shape: tuple[int, ...]
    dtype: str
    owner: Any
    """Keeps the memory alive."""

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * np.dtype(STORAGE[self.dtype]).itemsize

    def __int__(self) -> int:
        return self.address

    def __getitem__(self, rows: slice) -> DeviceArray:
        """Consecutive rows of the first axis, in the same memory."""
        first, last, step = rows.indices(self.shape[0])
        if step != 1:
            raise ValueError("a device array is cut into consecutive rows only")
        row_bytes = self.nbytes // self.shape[0]
        shape = (max(last - first, 0), *self.shape[1:])
        return DeviceArray(self.address + first * row_bytes, shape, self.dtype, self.owner)


@dataclass(frozen=True)
class PinnedArray:
    """A host array in pinned memory: copies to and from it run beside the processor."""

    array: Array
    address: int
    owner: Any


class GpuMemory:
    """Arrays of a GPU, by shape and dtype; copies in the order of a stream, the GPU's own where none is given."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._uploads: deque[tuple[Any, Array]] = deque()
        """Host arrays that a copy may still read, each with the event behind it."""

    def empty(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """Uninitialised device memory."""
        block = self._gpu.allocate(max(prod(shape), 1) * np.dtype(STORAGE[dtype]).itemsize)
        return DeviceArray(block.address, shape, dtype, block)

    def zeros(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        array = self.empty(shape, dtype)
        self.fill(array, 0)
        return array

    def pinned(self, shape: tuple[int, ...], dtype: str) -> PinnedArray:
        storage = np.dtype(STORAGE[dtype])
        nbytes = prod(shape) * storage.itemsize
        block, view = self._gpu.allocate_pinned(max(nbytes, 1))
        return PinnedArray(view[:nbytes].view(storage).reshape(shape), block.address, block)

    def upload(self, host: Array, target: DeviceArray | None = None, dtype: str | None = None) -> DeviceArray:
        """Host array -> device; kept until it is read, and not to be changed before.

        Raises:
            ValueError: the target has another size.
        """
        host = np.ascontiguousarray(host)
        if target is None:
            target = self.empty(host.shape, dtype or host.dtype.name)
        if target.nbytes != host.nbytes:
            raise ValueError(f"{host.nbytes} bytes do not fit a device array of {target.nbytes}")
        self._gpu.copy(target.address, host.ctypes.data, host.nbytes, self._gpu.stream)
        while self._uploads and self._uploads[0][0].is_done:
            self._uploads.popleft()
        self._uploads.append((self._gpu.record(self._gpu.stream), host))
        return target

    def download(self, source: DeviceArray) -> Array:
        """Device -> new host array; waits for the stream."""
        host = np.empty(source.shape, STORAGE[source.dtype])
        self._gpu.copy(host.ctypes.data, source.address, source.nbytes, self._gpu.stream)
        self._gpu.stream.sync()
        return host

    def copy(self, target: DeviceArray | PinnedArray, source: DeviceArray | PinnedArray, stream: Any = None) -> None:
        """Between device arrays or pinned ones of equal size; returns at once."""
        sizes = [a.nbytes if isinstance(a, DeviceArray) else a.array.nbytes for a in (target, source)]
        if sizes[0] != sizes[1]:
            raise ValueError(f"{sizes[1]} bytes do not fit {sizes[0]}")
        self._gpu.copy(target.address, source.address, sizes[0], stream or self._gpu.stream)

    def copy_frames(self, target: DeviceArray, source: DeviceArray) -> None:
        """Latents [1, c, frames, h, w] of a video -> [frames, c, h, w], as the VAE takes them; returns at once."""
        _, channels, frames = source.shape[:3]
        if (target.shape[:2], target.nbytes) != ((frames, channels), source.nbytes):
            raise ValueError(f"latents {list(source.shape)} do not fit {list(target.shape)}")
        plane = source.nbytes // (channels * frames)
        for frame in range(frames):
            to, start = target.address + frame * channels * plane, source.address + frame * plane
            self._gpu.copy_rows(to, plane, start, frames * plane, plane, channels)

    def on_device(self, array: Array | DeviceArray) -> DeviceArray:
        """The array itself, or a float32 copy of a host array."""
        return array if isinstance(array, DeviceArray) else self.upload(array.astype(np.float32, copy=False))

    def on_host(self, array: Array | DeviceArray) -> Array:
        """The array itself, or a copy of a device array; waits for the stream."""
        return self.download(array) if isinstance(array, DeviceArray) else array

    def fill(self, array: DeviceArray, byte: int) -> None:
        """Set every byte: 0, or 255, which is NaN in every float type."""
        self._gpu.fill(array.address, array.nbytes, byte, self._gpu.stream)


class Weighted(Protocol):
    """Something that holds a stage's weights."""

    def release(self) -> None:
        """Free them; they come back when they are next used."""


class WeightResidency:
    """Whose weights are on the GPU: all that were ever used or, for ``--low-vram``, those of one stage at a time."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self.exclusive = False
        self._current: Weighted | None = None

    def use(self, holder: Weighted) -> None:
        """Called before `holder` brings its weights or runs: another one's leave first."""
        if holder is self._current:
            return
        previous, self._current = self._current, holder
        if self.exclusive and previous is not None:
            self._gpu.stream.sync()  # its work may still be under way
            previous.release()

    def leave(self, holder: Weighted) -> None:
        """Called when `holder` frees its weights by itself, so that it is not kept alive here."""
        if self._current is holder:
            self._current = None


class SharedWorkspace:
    """One block of working memory for engines that run in turn on one stream, as large as the largest asks for.

    It only grows. Growing moves it: :attr:`version` then counts up, and whoever keeps the address asks again.
    """

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._block: Block | None = None
        self.version = 0

    def reserve(self, nbytes: int) -> None:
        """Make it at least this large."""
        if nbytes <= self.nbytes:
            return
        # Freed first: the old and the new block need not both fit.
        self._block = None
        self._block = self._gpu.allocate(nbytes)
        self.version += 1

    @property
    def address(self) -> int:
        return self._block.address if self._block else 0

    @property
    def nbytes(self) -> int:
        return self._block.nbytes if self._block else 0
