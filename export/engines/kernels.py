"""Our CUDA kernels compiled for a target, so that running a bundle needs no compiler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...kernels.cuda.compile import compile_cubin, source_hash
from ...kernels.cuda.sources import SOURCES
from ...runtime.bundle.manifest import KernelSpec
from .targets import Target


def write_cubins(target: Target, folder: Path, on_kernel: Callable[[str], None]) -> tuple[KernelSpec, ...]:
    """Compile every source for every compute capability of the target into ``<folder>/engines/kernels/sm_NN/``.

    Raises:
        UserError: the compiler is missing, or does not know the architecture.
    """
    specs = kernel_specs(target)
    for spec in specs:
        path = folder / spec.file
        path.parent.mkdir(parents=True, exist_ok=True)
        on_kernel(f"{spec.name} for {path.parent.name}")
        path.write_bytes(compile_cubin(spec.name, path.parent.name))
    return specs


def kernel_specs(target: Target) -> tuple[KernelSpec, ...]:
    """What the manifest says of all our kernels, compiled for a target."""
    specs: list[KernelSpec] = []
    for capability in target.cubins:
        for name, source in SOURCES.items():
            file = f"engines/kernels/sm_{capability.replace('.', '')}/{name}.cubin"
            entries = tuple(entry.name for entry in source.entry_points)
            specs.append(KernelSpec(name, file, capability, source_hash(name), entries))
    return tuple(specs)
