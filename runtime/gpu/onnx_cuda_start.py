"""Does ONNX Runtime's CUDA provider start here? Being listed says only that the package holds it.

Where cuDNN, a CUDA library or a GPU is missing, ONNX Runtime drops the provider with a line in its log and goes on with
the processor. So it is tried once, on a graph of one node, before anything is given to it.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

PROVIDER = "CUDAExecutionProvider"
# ModelProto: y = Identity(x), x float32 [1]; opset 13.
_SMALLEST_GRAPH = (
    b'\x08\x08:7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01g'
    b"Z\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01"
    b"B\x04\n\x00\x10\r"
)


@lru_cache(maxsize=1)
def why_not_started() -> str | None:
    """Why the provider does not start, in a few words; None: it does."""
    import onnxruntime

    preload_libraries(onnxruntime)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its own lines are many, red, and say less
    try:
        session = onnxruntime.InferenceSession(_SMALLEST_GRAPH, options, providers=[PROVIDER])
    except Exception as error:
        return _short(str(error))
    return None if PROVIDER in session.get_providers() else missing_library(onnxruntime)


def preload_libraries(onnxruntime: Any) -> None:
    """Let ONNX Runtime find the CUDA and cuDNN libraries of pip's packages; it does not look there by itself."""
    if hasattr(onnxruntime, "preload_dlls"):
        # It prints what it does not find.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
            onnxruntime.preload_dlls()


def missing_library(onnxruntime: Any) -> str:
    """What the provider's library needs and the system does not find."""
    name = "onnxruntime_providers_cuda.dll" if sys.platform == "win32" else "libonnxruntime_providers_cuda.so"
    library = Path(onnxruntime.__file__).parent / "capi" / name
    if not library.is_file():
        return f"{name} is missing"
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        if "undefined symbol" not in str(error):  # those come with ONNX Runtime itself
            return _short(str(error))
    return "cuDNN 9 and the CUDA libraries of its version must be installed"


def _short(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[0][:200].rstrip(". ")
