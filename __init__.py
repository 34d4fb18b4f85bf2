"""consisti2v-rt: an optimised deployment runtime for the ConsistI2V image-to-video model."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .runtime.pipeline import ImageToVideo
    from .runtime.settings import GenerationSettings
    from .runtime.video import GeneratedVideos

__version__ = "0.1.0"

# Public name -> module that defines it. Loaded on first use, so that `import consisti2v_rt` costs nothing.
_PUBLIC = {
    "ImageToVideo": ".runtime.pipeline",
    "GenerationSettings": ".runtime.settings",
    "GeneratedVideos": ".runtime.video",
    "UserError": ".runtime.errors",
}

__all__ = ["GeneratedVideos", "GenerationSettings", "ImageToVideo", "UserError", "__version__"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
