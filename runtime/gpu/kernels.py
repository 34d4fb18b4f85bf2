"""Our CUDA kernels on this card: cubins from the bundle, or compiled now where NVRTC happens to be installed."""

from __future__ import annotations

from typing import Any

from ...errors import UserError
from ...kernels.cuda.sources import SOURCES
from ..bundle.bundle import Bundle
from ..bundle.manifest import KernelSpec
from ..install import install_hint
from .device import Gpu

ELEMENT_SUFFIX = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
"""dtype of a U-Net's or decoder's arrays -> suffix of the entry points that take it."""


class GpuKernels:
    """Launches kernels by the name of their entry point; a source is loaded when one of its is first asked for."""

    def __init__(self, gpu: Gpu, bundle: Bundle) -> None:
        self._gpu, self._bundle = gpu, bundle
        self._loaded: dict[str, Any] = {}
        self._home = {entry.name: source.name for source in SOURCES.values() for entry in source.entry_points}

    def launch(self, entry: str, on: Any = None, /, **values: Any) -> None:
        """Enqueue an entry point on a stream, the GPU's own where none is given.

        Arrays are given as :class:`~.memory.DeviceArray`; None is null.

        Raises:
            UserError: there is no kernel for this card and no compiler, or its file is missing or damaged.
        """
        name = self._home[entry]
        if name not in self._loaded:
            self._loaded[name] = self._gpu.load_kernels(name, self._cubin(name))
        addressed = {key: int(value) if hasattr(value, "address") else value for key, value in values.items()}
        self._loaded[name].launch(on or self._gpu.stream, entry, **addressed)

    def _cubin(self, name: str) -> bytes:
        spec = find_cubin(self._bundle.manifest.kernels, name, self._gpu.compute_capability)
        if spec is not None:
            self._bundle.require([spec.file], "consisti2v build BUNDLE --target current")
            return self._bundle.read(spec.file).tobytes()
        try:
            from ...kernels.cuda.compile import compile_cubin

            return compile_cubin(name, "sm_" + self._gpu.compute_capability.replace(".", ""))
        except Exception as error:
            raise UserError(
                f"the bundle has no kernels for compute capability {self._gpu.compute_capability}, and they cannot be "
                f"compiled here ({str(error).splitlines()[0]}): run 'consisti2v build BUNDLE --target current', or "
                f"{install_hint('kernels')}."
            ) from None


def find_cubin(kernels: tuple[KernelSpec, ...], name: str, compute_capability: str) -> KernelSpec | None:
    """The compiled kernel that runs on a card: of the same major compute capability and no later minor one (CUDA's
    binary compatibility), the nearest first; only one compiled from the very source whose arguments this program knows.
    """
    from ...kernels.cuda.compile import source_hash

    major, minor = (int(part) for part in compute_capability.split("."))
    fitting: list[tuple[int, KernelSpec]] = []
    for spec in kernels:
        own_major, own_minor = (int(part) for part in spec.compute_capability.split("."))
        if spec.name == name and own_major == major and own_minor <= minor and spec.source_sha256 == source_hash(name):
            fitting.append((own_minor, spec))
    return max(fitting, key=lambda pair: pair[0])[1] if fitting else None
