"""Our CUDA kernels on this card: cubins from the bundle, or compiled now where NVRTC happens to be installed."""

from __future__ import annotations

from ...errors import BackendError, UserError, first_line
from ...kernels.cuda.launch import Kernels
from ..bundle.bundle import Bundle
from ..bundle.manifest import KernelSpec
from ..install import install_hint
from .device import Gpu

ELEMENT_SUFFIX = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
"""dtype of a U-Net's or decoder's arrays -> suffix of the entry points that take it."""


class GpuKernels(Kernels):
    """The launcher, with the cubins of a bundle.

    A source that cannot be loaded is a :class:`BackendError`: the driver refuses it, or there is no kernel for this
    card and no compiler. A file that is missing or damaged is a :class:`UserError`.
    """

    def __init__(self, gpu: Gpu, bundle: Bundle) -> None:
        super().__init__(gpu.stream, self._cubin)
        self._gpu, self._bundle = gpu, bundle

    def load(self, *sources: str) -> None:
        for source in sources:
            try:
                super().load(source)
            except UserError:
                raise
            except Exception as error:
                raise BackendError(
                    f"the CUDA driver refuses the kernels {source} of this bundle ({first_line(error)}): update the "
                    "driver, or run 'consisti2v build BUNDLE --target current'."
                ) from None

    def _cubin(self, name: str) -> bytes:
        spec = find_cubin(self._bundle.manifest.kernels, name, self._gpu.compute_capability)
        if spec is not None:
            self._bundle.require([spec.file], "consisti2v build BUNDLE --target current")
            return self._bundle.read(spec.file).tobytes()
        try:
            from ...kernels.cuda.compile import compile_cubin

            return compile_cubin(name, "sm_" + self._gpu.compute_capability.replace(".", ""))
        except Exception as error:
            raise BackendError(
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
