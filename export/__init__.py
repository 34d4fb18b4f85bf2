"""Torch side: checkpoint -> ONNX -> bundle. The only folder that imports torch (the `[export]` extra)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .unet import UNetConfig, VideoUNet

# Public name -> module that defines it; loaded on first use, so that commands can be listed without torch.
_PUBLIC = {"UNetConfig": ".unet", "VideoUNet": ".unet"}

__all__ = ["UNetConfig", "VideoUNet"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
