"""How a GPU is used; see ``runtime/gpu/``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GpuOptions:
    """Options that have no meaning on a processor."""

    low_vram: bool | None = None
    """True: one stage's weights on the GPU at a time. False: all of them. None: all where they fit."""
    device_noise: bool = False
    """Noise drawn on the GPU (Philox), not in the published order: the same seed then gives another video."""
    cuda_graph: bool = True
    """Replay each step as one CUDA graph; False enqueues it kernel by kernel."""
