"""The video U-Net in plain torch: the published architecture and keys, in an efficient, exportable formulation."""

from __future__ import annotations

from .config import UNetConfig
from .model import VideoUNet

__all__ = ["UNetConfig", "VideoUNet"]
