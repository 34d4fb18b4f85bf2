"""cuFFT through ctypes: batched real 3-D transforms, the plan kept. Signatures as in cufft.h of CUDA 13."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from math import prod
from typing import Any

from ..install import install_hint

_R2C, _C2R = 0x2A, 0x2C
_Handle = ctypes.c_int


@lru_cache(maxsize=1)
def _library() -> Any:
    """libcufft, from NVIDIA's wheel or an installed toolkit.

    Raises:
        RuntimeError: it cannot be found.
    """
    from cuda.pathfinder import load_nvidia_dynamic_lib

    try:
        path = load_nvidia_dynamic_lib("cufft").abs_path
    except Exception as error:
        raise RuntimeError(f"cuFFT is not installed ({type(error).__name__}): {install_hint('rtx')}") from None
    library = ctypes.CDLL(path)
    integer, pointer, integers = ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int)
    library.cufftPlanMany.argtypes = [
        ctypes.POINTER(_Handle),
        integer,  # rank
        integers,  # n
        integers,  # inembed
        integer,  # istride
        integer,  # idist
        integers,  # onembed
        integer,  # ostride
        integer,  # odist
        integer,  # type
        integer,  # batch
    ]
    library.cufftSetStream.argtypes = [_Handle, pointer]
    library.cufftExecR2C.argtypes = [_Handle, pointer, pointer]
    library.cufftExecC2R.argtypes = [_Handle, pointer, pointer]
    library.cufftDestroy.argtypes = [_Handle]
    return library


class RealTransform:
    """Forward and inverse transform of [batch, T, h, w] float32 <-> [batch, T, h, w//2 + 1] complex64 on a stream.

    The inverse is not normalised (divide by T*h*w) and uses its input as working space.

    Raises:
        RuntimeError: cuFFT is missing, or refuses the sizes.
    """

    def __init__(self, shape: tuple[int, int, int], batch: int, stream: Any) -> None:
        self.shape, self.batch = shape, batch
        self._library = _library()
        self._forward, self._inverse = _Handle(), _Handle()
        sizes = (ctypes.c_int * 3)(*shape)
        real, half = prod(shape), shape[0] * shape[1] * (shape[2] // 2 + 1)
        # No embedding: arrays are contiguous, so strides are 1 and distances the sizes of one transform.
        for plan, kind, distances in ((self._forward, _R2C, (real, half)), (self._inverse, _C2R, (half, real))):
            _check(
                self._library.cufftPlanMany(
                    ctypes.byref(plan), 3, sizes, None, 1, distances[0], None, 1, distances[1], kind, batch
                ),
                "cufftPlanMany",
            )
            _check(self._library.cufftSetStream(plan, int(stream.handle)), "cufftSetStream")

    def forward(self, real: int, spectrum: int) -> None:
        """Addresses of a float32 and a complex64 array; returns at once."""
        _check(self._library.cufftExecR2C(self._forward, real, spectrum), "cufftExecR2C")

    def inverse(self, spectrum: int, real: int) -> None:
        """Addresses of a complex64 (overwritten) and a float32 array; returns at once."""
        _check(self._library.cufftExecC2R(self._inverse, spectrum, real), "cufftExecC2R")

    def __del__(self) -> None:
        for plan in (getattr(self, "_forward", None), getattr(self, "_inverse", None)):
            if plan is not None and plan.value:
                self._library.cufftDestroy(plan)


def _check(status: int, function: str) -> None:
    if status != 0:
        raise RuntimeError(f"{function} failed with cuFFT status {status}")
