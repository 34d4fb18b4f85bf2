"""CUDA C++ -> cubin for a named GPU architecture, with NVRTC and no GPU: at build time, not at run time."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any, TextIO

from ...errors import UserError
from ...runtime.install import install_hint
from .sources import SOURCES

FOLDER = Path(__file__).parent
# Without fused multiply-add the kernels round like their NumPy references; where one is wanted the source says fmaf.
OPTIONS: dict[str, Any] = {"std": "c++17", "fma": False}
_ARCHITECTURE = re.compile(r"sm_\d{2,3}[af]?")


def kernel_file(name: str) -> Path:
    """The source file of a kernel of :data:`~.sources.SOURCES`.

    Raises:
        ValueError: there is no such kernel.
    """
    if name not in SOURCES:
        raise ValueError(f"Unknown kernel {name!r}: choose one of {', '.join(SOURCES)}.")
    return FOLDER / f"{name}.cu"


def source_hash(name: str) -> str:
    """SHA-256 of everything of ours that a kernel is compiled from: its source, our headers, the options.

    A cubin of another hash is of another kernel; the manifest records it.

    Raises:
        ValueError: there is no such kernel.
    """
    digest = hashlib.sha256(repr(sorted(OPTIONS.items())).encode())
    for file in (kernel_file(name), *sorted(FOLDER.glob("*.cuh"))):
        # Line ends do not count: a checkout on Windows has others.
        text = file.read_text(encoding="utf-8").encode()
        digest.update(f"\0{file.name}\0{len(text)}\0".encode() + text)
    return digest.hexdigest()


def compile_cubin(name: str, arch: str, log: TextIO | None = None) -> bytes:
    """Compile a kernel for one architecture; needs NVRTC, no GPU and no driver.

    Args:
        name: a kernel of :data:`~.sources.SOURCES`.
        arch: "sm_89" and the like.
        log: receives the assembler's report: registers, shared memory and spills of each entry point.

    Returns:
        The cubin; the same source, compiler and architecture give the same bytes.

    Raises:
        UserError: cuda.core, NVRTC or the CUDA headers are missing, or NVRTC does not know the architecture.
        ValueError: there is no such kernel.
    """
    file = kernel_file(name)
    if not _ARCHITECTURE.fullmatch(arch):
        raise UserError(f"{arch!r} is no GPU architecture: give one like sm_89.")
    try:
        from cuda.core import Program, ProgramOptions
    except ImportError as error:
        raise UserError(f"Compiling CUDA kernels needs cuda.core ({error}): {install_hint('kernels')}.") from None
    options = ProgramOptions(
        name=file.name,
        arch=arch,
        include_path=[os.fspath(FOLDER), _cuda_headers()],
        ptxas_options=["-v"] if log else None,
        **OPTIONS,
    )
    try:
        cubin: bytes = Program(file.read_text(encoding="utf-8"), "c++", options).compile("cubin", logs=log).code
    except Exception as error:
        # cuda.pathfinder's errors for a library that is not there, and cuda.core's for one that refuses.
        if type(error).__name__.startswith("DynamicLib"):
            raise UserError(f"Compiling CUDA kernels needs NVRTC: {install_hint('kernels')}.") from None
        if "invalid value for --gpu-architecture" in str(error):
            raise UserError(f"This NVRTC cannot compile for {arch}: choose another target, or update NVRTC.") from None
        raise
    return cubin


def _cuda_headers() -> str:
    """Folder of cuda_fp16.h: NVIDIA's wheels, or an installed CUDA toolkit."""
    from cuda.pathfinder import find_nvidia_header_directory

    folder: str | None = find_nvidia_header_directory("cudart")
    if folder is None or not (Path(folder) / "cuda_fp16.h").is_file():
        raise UserError(f"Compiling CUDA kernels needs the CUDA runtime's headers: {install_hint('kernels')}.")
    return folder
