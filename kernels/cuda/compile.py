"""CUDA C++ -> cubin for a named GPU architecture, with NVRTC and no GPU: at build time, not at run time."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any, TextIO

from .sources import FOLDER, SOURCES

# Without fused multiply-add the kernels round like their NumPy references; where one is wanted the source says fmaf.
OPTIONS: dict[str, Any] = {"std": "c++17", "fma": False}
_ARCHITECTURE = re.compile(r"sm_\d{2,3}[af]?")


class CompilerMissingError(Exception):
    """A package that compiling needs is not installed; the message names it."""


def kernel_file(name: str) -> Path:
    """The source file of a kernel of :data:`~.sources.SOURCES`; ValueError where there is no such kernel."""
    if name not in SOURCES:
        raise ValueError(f"Unknown kernel {name!r}: choose one of {', '.join(SOURCES)}.")
    return FOLDER / f"{name}.cu"


def source_hash(name: str) -> str:
    """SHA-256 of everything of ours that a kernel is compiled from: its source, our headers, the options.

    A cubin of another hash is of another kernel; the manifest records it.
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
        CompilerMissingError: cuda.core, NVRTC or the CUDA headers are not there.
        ValueError: there is no such kernel, or NVRTC does not know the architecture.
    """
    file = kernel_file(name)
    if not _ARCHITECTURE.fullmatch(arch):
        raise ValueError(f"{arch!r} is no GPU architecture: give one like sm_89.")
    try:
        from cuda.core import Program, ProgramOptions
        from cuda.pathfinder import find_nvidia_header_directory
    except ImportError as error:
        raise CompilerMissingError(f"compiling CUDA kernels needs cuda.core ({error})") from None
    # Of NVIDIA's wheels, or of an installed CUDA toolkit.
    headers: str | None = find_nvidia_header_directory("cudart")
    if headers is None or not (Path(headers) / "cuda_fp16.h").is_file():
        raise CompilerMissingError("compiling CUDA kernels needs the CUDA runtime's headers")
    options = ProgramOptions(
        name=file.name,
        arch=arch,
        include_path=[os.fspath(FOLDER), headers],
        ptxas_options=["-v"] if log else None,
        **OPTIONS,
    )
    try:
        cubin: bytes = Program(file.read_text(encoding="utf-8"), "c++", options).compile("cubin", logs=log).code
    except Exception as error:
        # cuda.pathfinder's errors for a library that is not there, and cuda.core's for one that refuses.
        if type(error).__name__.startswith("DynamicLib"):
            raise CompilerMissingError("compiling CUDA kernels needs NVRTC") from None
        if "invalid value for --gpu-architecture" in str(error):
            raise ValueError(f"This NVRTC cannot compile for {arch}: choose another target, or update NVRTC.") from None
        raise
    return cubin
