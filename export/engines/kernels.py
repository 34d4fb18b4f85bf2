"""Our CUDA kernels compiled for a target, so that running a bundle needs no compiler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...kernels.cuda.compile import compile_cubin, source_hash
from ...kernels.cuda.sources import SOURCES
from ...runtime.manifest import KernelSpec
from .targets import Target

FOLDER = "engines/kernels"


def write_cubins(target: Target, folder: Path, on_kernel: Callable[[str], None]) -> tuple[KernelSpec, ...]:
    """Compile every source for every compute capability of the target into ``<folder>/sm_NN/``.

    Raises:
        UserError: the compiler is missing, or does not know the architecture.
    """
    specs: list[KernelSpec] = []
    for capability in target.cubins:
        architecture = "sm_" + capability.replace(".", "")
        (folder / architecture).mkdir(parents=True, exist_ok=True)
        for name, source in SOURCES.items():
            on_kernel(f"{name} for {architecture}")
            file = f"{architecture}/{name}.cubin"
            (folder / file).write_bytes(compile_cubin(name, architecture))
            entries = tuple(entry.name for entry in source.entry_points)
            specs.append(KernelSpec(name, f"{FOLDER}/{file}", capability, source_hash(name), entries))
    return tuple(specs)
