"""Peak signal-to-noise ratio of one video against another."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ....runtime.media.read_video import Frames
from ..errors import UnavailableError
from ..media_set import MediaSet
from ..networks.loader import Networks
from ..result import Measure, Scores


def mean_squared_errors(frames: Frames, original: Frames) -> NDArray[np.float64]:
    """Of each frame, float64 [frames].

    Args:
        frames, original: uint8 [frames, h, w, 3] of one shape.
    """
    pairs = zip(frames, original, strict=True)
    return np.array([((a.astype(np.float64) - b.astype(np.float64)) ** 2).mean() for a, b in pairs])


def psnr(mean_squared_error: float) -> float:
    """10 log10(255^2 / mean squared error), in dB; infinite for equal pictures."""
    return math.inf if mean_squared_error == 0 else 10.0 * math.log10(255.0**2 / mean_squared_error)


def require_originals(media: MediaSet) -> None:
    """Refuse a set without originals.

    Raises:
        UnavailableError: nothing to compare with.
    """
    if not media.originals:
        raise UnavailableError("there is nothing to compare with: give the originals with --against.")


def _compute(media: MediaSet, networks: Networks) -> Scores:
    require_originals(media)
    errors = {
        video.name: mean_squared_errors(video.frames, media.originals[video.name].frames) for video in media.videos
    }
    # Errors are averaged, not decibels: one equal frame would make their mean infinite.
    per_video = {name: psnr(float(values.mean())) for name, values in errors.items()}
    details: dict[str, float | str] = {
        "worst_frame": psnr(max(float(values.max()) for values in errors.values())),
        "first_frame": psnr(float(np.mean([values[0] for values in errors.values()]))),
    }
    return Scores(psnr(float(np.mean([values.mean() for values in errors.values()]))), per_video, details=details)


MEASURES = (
    Measure(
        "psnr",
        "PSNR against the original",
        "higher",
        "dB",
        "10 log10(255^2 / MSE) of RGB, the MSE averaged over frames and videos.",
        _compute,
    ),
)
