"""Our CUDA kernels compiled for a target, so that running a bundle needs no compiler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...errors import UserError
from ...kernels.cuda.compile import CompilerMissingError, compile_cubin, source_hash
from ...kernels.cuda.sources import CALL_KERNELS, SOURCES
from ...runtime.bundle.manifest import KernelSpec
from ...runtime.install import install_hint
from .targets import Target


def write_cubins(target: Target, folder: Path, on_kernel: Callable[[str], None]) -> tuple[KernelSpec, ...]:
    """Compile what calls launch, for every compute capability of the target, into ``<folder>/engines/kernels/sm_NN/``.

    Raises:
        UserError: the compiler is missing, or does not know the architecture.
    """
    specs = kernel_specs(target)
    for spec in specs:
        path = folder / spec.file
        path.parent.mkdir(parents=True, exist_ok=True)
        on_kernel(f"{spec.name} for {path.parent.name}")
        path.write_bytes(cubin(spec.name, path.parent.name))
    return specs


def cubin(name: str, architecture: str) -> bytes:
    """:func:`compile_cubin` with its refusals as a :class:`UserError`."""
    try:
        return compile_cubin(name, architecture)
    except CompilerMissingError as error:
        raise UserError(f"{error}: {install_hint('kernels')}.") from None
    except ValueError as error:
        raise UserError(str(error)) from None


def kernel_specs(target: Target) -> tuple[KernelSpec, ...]:
    """What the manifest says of the kernels that calls launch, compiled for a target."""
    specs: list[KernelSpec] = []
    for capability in target.cubins:
        architecture = "sm_" + capability.replace(".", "")
        for name in CALL_KERNELS:
            file = f"engines/kernels/{architecture}/{name}.cubin"
            specs.append(KernelSpec(name, file, capability, source_hash(name), tuple(SOURCES[name])))
    return tuple(specs)
