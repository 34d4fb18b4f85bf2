"""How a GPU is used; see ``runtime/gpu/``."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import UserError


@dataclass(frozen=True)
class GpuOptions:
    """Options that have no meaning on a processor."""

    low_vram: bool | None = None
    """True: one stage's weights on the GPU at a time. False: all of them. None: all where they fit."""
    device_noise: bool = False
    """Noise drawn on the GPU (Philox), not in the published order: the same seed then gives another video."""
    cuda_graph: bool = True
    """Replay each step as one CUDA graph; False enqueues it kernel by kernel."""


def check_gpu_options(options: GpuOptions, device: str) -> None:
    """Refuse what would do nothing.

    Raises:
        UserError: one of the options is asked for on a device that is named and is no GPU.
    """
    asked = {
        "low_vram": options.low_vram is not None,
        "device_noise": options.device_noise,
        "cuda_graph": not options.cuda_graph,
    }
    names = [name for name, is_asked in asked.items() if is_asked]
    if names and device in ("cpu", "openvino"):
        need, it = ("needs", "it") if len(names) == 1 else ("need", "them")
        raise UserError(
            f"{', '.join(names)} {need} a GPU, which device {device} is not: leave {it} out, or choose device cuda."
        )
