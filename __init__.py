"""consisti2v-rt: an optimised deployment runtime for the ConsistI2V image-to-video model."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import CancelledError, UserError
    from .runtime.bundle.bundle import Bundle
    from .runtime.call_queue import CancelToken
    from .runtime.gpu.options import GpuOptions
    from .runtime.pipeline import ImageToVideo
    from .runtime.request.settings import GenerationSettings, StepProgress
    from .runtime.video import GeneratedVideos

__version__ = "0.1.0"

# Public name -> module that defines it. Loaded on first use, so that `import consisti2v_rt` costs nothing.
_PUBLIC = {
    "Bundle": ".runtime.bundle.bundle",
    "CancelToken": ".runtime.call_queue",
    "CancelledError": ".errors",
    "GeneratedVideos": ".runtime.video",
    "GenerationSettings": ".runtime.request.settings",
    "GpuOptions": ".runtime.gpu.options",
    "ImageToVideo": ".runtime.pipeline",
    "StepProgress": ".runtime.request.settings",
    "UserError": ".errors",
}

__all__ = [
    "Bundle",
    "CancelToken",
    "CancelledError",
    "GeneratedVideos",
    "GenerationSettings",
    "GpuOptions",
    "ImageToVideo",
    "StepProgress",
    "UserError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name == "comfy_entrypoint":  # ComfyUI asks the folder in custom_nodes for it
        return importlib.import_module(".comfyui.nodes", __name__).comfy_entrypoint
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """What ``dir``, ``help`` and completion show."""
    return sorted(__all__)
