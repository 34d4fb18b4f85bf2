"""The two engine libraries, by backend name, and what each needs to build for a target.

Their Python interfaces are the same but for this: TensorRT for RTX takes compute capabilities and needs no GPU;
TensorRT builds for the GPU it runs on, or for every later one in its hardware-compatible mode. NVIDIA ships no
stubs: a test compares the names that are used in this folder with both libraries.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from ...errors import UserError
from ...runtime.gpu.cards import is_data_centre
from ...runtime.gpu.device import GpuStatus
from ...runtime.install import install_hint
from .targets import Target


@dataclass(frozen=True)
class EngineBackend:
    """What ``--backend`` names."""

    name: str
    title: str
    module: str
    extra: str
    """Of this package, that installs it."""
    needs_gpu: bool
    """Such plans run on the operating system they were built on; the others on Linux and Windows."""


ENGINE_BACKENDS = {
    "tensorrt-rtx": EngineBackend("tensorrt-rtx", "TensorRT for RTX", "tensorrt_rtx", "rtx", False),
    "tensorrt": EngineBackend("tensorrt", "TensorRT", "tensorrt", "tensorrt", True),
}


def find_engine_backend(name: str) -> EngineBackend:
    """The engine library of a name.

    Raises:
        UserError: unknown.
    """
    if name not in ENGINE_BACKENDS:
        raise UserError(f"backend {name!r} is unknown: choose {', '.join(ENGINE_BACKENDS)}.")
    return ENGINE_BACKENDS[name]


def load_library(backend: EngineBackend) -> Any:
    """Import the library.

    Raises:
        UserError: it is not installed, or too old for this program.
    """
    try:
        library: Any = importlib.import_module(backend.module)
    except ImportError as error:
        raise UserError(f"{backend.title} cannot be imported ({error}): {install_hint(backend.extra)}.") from None
    if not hasattr(library, "IAttentionInputLayer"):
        raise UserError(
            f"{backend.title} {library.__version__} does not know the Attention operator: "
            f"{install_hint(backend.extra)} --upgrade."
        )
    return library


def check_machine(backend: EngineBackend, target: Target, gpu: GpuStatus) -> None:
    """Refuse what this machine cannot build.

    Raises:
        UserError: the library does not build for the target, or needs a GPU, or another one than there is.
    """
    held = ", ".join(target.compute_capabilities)
    if backend.needs_gpu:
        if not gpu.found:
            raise UserError(
                f"backend {backend.name} builds on the GPU itself, and there is none ({gpu.reason}): "
                f"build there{_or_rtx(target)}."
            )
        if not target.is_portable and target.compute_capabilities != (gpu.compute_capability,):
            raise UserError(
                f"backend {backend.name} builds for this machine's GPU (compute capability {gpu.compute_capability}), "
                f"not for {held}: use --target current{_or_rtx(target)}."
            )
    elif not target.runs_rtx_engines:
        raise UserError(
            f"{backend.title} builds no engines for {target.words} (target {target.name}, compute capability "
            f"{held}): build on such a machine with --backend tensorrt --target current, or let ONNX Runtime's CUDA "
            "provider run the bundle there."
        )
    elif target.oldest < (8, 0):
        # Found by building: "FP32 GEMM is not supported" of the U-Net's time embedding, with version 1.7.
        raise UserError(
            f"{backend.title} 1.7 builds no float32 products for Turing ({target.words}), and the U-Net has some "
            "in every precision: let ONNX Runtime run the bundle there, or build for an RTX card since Ampere."
        )


def _or_rtx(target: Target) -> str:
    """The other library, where it builds for the target."""
    return ", or use --backend tensorrt-rtx" if target.runs_rtx_engines else ""


def set_target(library: Any, config: Any, backend: EngineBackend, target: Target) -> None:
    """Tell the builder which GPUs to build for.

    Raises:
        UserError: this version of the library does not know one of them.
    """
    if target.is_portable:
        if backend.needs_gpu:  # the other library's default
            config.hardware_compatibility_level = library.HardwareCompatibilityLevel.AMPERE_PLUS
        return
    if backend.needs_gpu:
        return
    config.num_compute_capabilities = len(target.compute_capabilities)
    for index, capability in enumerate(target.compute_capabilities):
        known = getattr(library.ComputeCapability, "SM" + capability.replace(".", ""), None)
        if known is None or not config.set_compute_capability(known, index):
            other = "build there with --backend tensorrt" if is_data_centre(capability) else "choose --target rtx"
            raise UserError(
                f"{backend.title} {library.__version__} builds no engines for compute capability {capability}: {other}"
                ", or let ONNX Runtime's CUDA provider run the bundle."
            )
