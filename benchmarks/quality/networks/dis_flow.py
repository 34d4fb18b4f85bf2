"""Dense inverse search optical flow (Kroeger et al. 2016, arXiv:1603.03590) through OpenCV: no network, no download."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ....runtime.install import install_hint
from ....runtime.media.read_video import Frames
from ..errors import UnavailableError
from ..result import NetworkInfo
from .loader import library

SIDE = 256
"""Frames are scaled to this smaller side first, so that one threshold fits all sizes."""


class DisFlow:
    """DIS, medium preset.

    Raises:
        UnavailableError: OpenCV is not installed.
    """

    def __init__(self) -> None:
        try:
            import cv2
        except ImportError as error:
            raise UnavailableError(
                f"DIS optical flow needs OpenCV: {install_hint('quality')} (opencv-python-headless)."
            ) from error
        self._cv2 = cv2
        self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self.info = NetworkInfo("DIS optical flow, medium", library("opencv-python-headless"), "none: an algorithm")

    def scale(self, frames: Frames) -> Frames:
        """Frames [n, h, w, 3] resized to a smaller side of 256."""
        height, width = frames.shape[1:3]
        factor = SIDE / min(height, width)
        if factor == 1:
            return frames
        size = (max(SIDE, round(width * factor)), max(SIDE, round(height * factor)))
        kind = self._cv2.INTER_AREA if factor < 1 else self._cv2.INTER_LINEAR
        return np.stack([self._cv2.resize(frame, size, interpolation=kind) for frame in frames])

    def flow(self, first: Frames, second: Frames) -> NDArray[np.float32]:
        """Pixels each point moves, [h, w, 2] as (right, down).

        Args:
            first, second: uint8 RGB [height, width, 3], scaled.
        """
        grey = [self._cv2.cvtColor(frame, self._cv2.COLOR_RGB2GRAY) for frame in (first, second)]
        return np.asarray(self._dis.calc(grey[0], grey[1], None), dtype=np.float32)

    def warp(self, frame: Frames, flow: NDArray[np.float32]) -> NDArray[np.float32]:
        """`frame` read at each point plus `flow`, bilinear, edge repeated: float32 [h, w, 3]."""
        height, width = frame.shape[:2]
        across, down = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
        warped = self._cv2.remap(
            frame.astype(np.float32),
            across + flow[..., 0],
            down + flow[..., 1],
            self._cv2.INTER_LINEAR,
            borderMode=self._cv2.BORDER_REPLICATE,
        )
        return np.asarray(warped, dtype=np.float32)
