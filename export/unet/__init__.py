"""The video U-Net in plain torch: the published architecture and keys, in an efficient, exportable formulation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .config import UNetConfig

if TYPE_CHECKING:
    from .model import VideoUNet

__all__ = ["UNetConfig", "VideoUNet"]


def __getattr__(name: str) -> Any:
    """The U-Net on first use: a configuration is checked without torch."""
    if name == "VideoUNet":
        from .model import VideoUNet

        return VideoUNet
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
