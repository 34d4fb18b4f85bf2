"""Our CUDA kernels compiled for a target, so that running a bundle needs no compiler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...kernels.cuda.compile import compile_cubin, source_hash
from ...kernels.cuda.sources import SOURCES
from ...runtime.bundle.manifest import KernelSpec
from .targets import Target

FOLDER = "engines/kernels"


def write_cubins(target: Target, folder: Path, on_kernel: Callable[[str], None]) -> tuple[KernelSpec, ...]:
    """Compile every source for every compute capability of the target into ``<folder>/sm_NN/``.

    Raises:
        UserError: the compiler is missing, or does not know the architecture.
    """
    specs = kernel_specs(target)
    for spec in specs:
        file = Path(spec.file).relative_to(FOLDER)
        architecture = file.parts[0]
        (folder / architecture).mkdir(parents=True, exist_ok=True)
        on_kernel(f"{spec.name} for {architecture}")
        (folder / file).write_bytes(compile_cubin(spec.name, architecture))
    return specs


def kernel_specs(target: Target) -> tuple[KernelSpec, ...]:
    """What the manifest says of all our kernels, compiled for a target."""
    specs: list[KernelSpec] = []
    for capability in target.cubins:
        architecture = "sm_" + capability.replace(".", "")
        for name, source in SOURCES.items():
            entries = tuple(entry.name for entry in source.entry_points)
            file = f"{FOLDER}/{architecture}/{name}.cubin"
            specs.append(KernelSpec(name, file, capability, source_hash(name), entries))
    return tuple(specs)
