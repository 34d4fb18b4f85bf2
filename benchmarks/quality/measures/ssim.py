"""Structural similarity (Wang et al. 2004, doi:10.1109/TIP.2003.819861) of one video against another."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ....runtime.media.read_video import Frames
from ..errors import UnavailableError
from ..media_set import MediaSet
from ..networks.loader import Networks
from ..result import Measure, Scores
from .psnr import require_originals

WINDOW = 11
_SIGMA = 1.5
_C1 = (0.01 * 255) ** 2
_C2 = (0.03 * 255) ** 2


def ssim(frames: Frames, original: Frames) -> NDArray[np.float64]:
    """SSIM of each frame: 11x11 Gaussian window of sigma 1.5, where it fits whole; mean over places and RGB.

    Args:
        frames, original: uint8 [frames, h >= 11, w >= 11, 3] of one shape.
    """
    return np.array([_frame_ssim(a, b) for a, b in zip(frames, original, strict=True)])


def _frame_ssim(a: Frames, b: Frames) -> float:
    x, y = a.astype(np.float64), b.astype(np.float64)
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    top = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    bottom = (mean_x**2 + mean_y**2 + _C1) * (var_x + var_y + _C2)
    return float((top / bottom).mean())


def _blur(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gaussian window over the first two axes, only where it fits whole."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    weights /= weights.sum()
    rows, columns = x.shape[0] - WINDOW + 1, x.shape[1] - WINDOW + 1
    down = np.zeros((rows, *x.shape[1:]))
    for i, weight in enumerate(weights):
        down += weight * x[i : i + rows]
    across = np.zeros((rows, columns, *x.shape[2:]))
    for i, weight in enumerate(weights):
        across += weight * down[:, i : i + columns]
    return across


def _compute(media: MediaSet, networks: Networks) -> Scores:
    require_originals(media)
    for video in media.videos:
        if min(video.frames.shape[1:3]) < WINDOW:
            raise UnavailableError(f"{video.name} is smaller than SSIM's window of {WINDOW} pixels.")
    frames = {video.name: ssim(video.frames, media.originals[video.name].frames) for video in media.videos}
    per_video = {name: float(values.mean()) for name, values in frames.items()}
    worst = min(float(values.min()) for values in frames.values())
    return Scores(float(np.mean(list(per_video.values()))), per_video, details={"worst_frame": worst})


MEASURES = (
    Measure(
        "ssim",
        "SSIM against the original",
        "higher",
        "-1..1",
        "Wang et al. 2004, 11x11 Gaussian window of sigma 1.5, RGB, mean over frames, mean over videos.",
        _compute,
    ),
)
