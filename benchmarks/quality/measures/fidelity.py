"""How near a video is to another that it should equal: PSNR, SSIM, and the distance of their latents."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ....runtime.media.read_video import Frames, Video
from ..measure import Compute, Scores, UnavailableError
from ..media_set import MediaSet
from ..networks import Networks
from ..networks.flow import opencv

WINDOW = 11
_SIGMA = 1.5
_C1 = (0.01 * 255) ** 2
_C2 = (0.03 * 255) ** 2


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


def ssim(frames: Frames, original: Frames) -> NDArray[np.float64]:
    """SSIM of each frame: 11x11 Gaussian window of sigma 1.5, where it fits whole; mean over places and RGB
    (Wang et al. 2004, doi:10.1109/TIP.2003.819861).

    Args:
        frames, original: uint8 [frames, h >= 11, w >= 11, 3] of one shape.

    Raises:
        UnavailableError: OpenCV is not installed.
    """
    cv2 = opencv("SSIM")
    inside = slice(WINDOW // 2, -(WINDOW // 2))

    def blur(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(cv2.GaussianBlur(x, (WINDOW, WINDOW), _SIGMA))[inside, inside]

    def of_frame(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
        mean_x, mean_y = blur(x), blur(y)
        var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
        covariance = blur(x * y) - mean_x * mean_y
        top = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
        bottom = (mean_x**2 + mean_y**2 + _C1) * (var_x + var_y + _C2)
        return float((top / bottom).mean())

    pairs = zip(frames, original, strict=True)
    return np.array([of_frame(a.astype(np.float64), b.astype(np.float64)) for a, b in pairs])


def latent_relative_l2(latents: NDArray[np.float32], original: NDArray[np.float32]) -> NDArray[np.float64]:
    """|a - b| / |b| of each frame.

    Args:
        latents, original: [c, frames, h, w] of one shape.

    Returns:
        float64 [frames].
    """
    a, b = (x.astype(np.float64).transpose(1, 0, 2, 3).reshape(x.shape[1], -1) for x in (latents, original))
    return np.asarray(np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1))


def _against_originals(
    of_frames: Callable[[Video, Video], NDArray[np.float64]],
    worst: Callable[..., float],
    shown: Callable[[float], float] = float,
    *,
    first_frame: bool = False,
) -> Compute:
    """A measure of each frame against its original: mean over frames, then over videos.

    Args:
        of_frames: the values of a video and its original, float64 [frames].
        worst: `min` or `max` of values.
        shown: of a mean of values, the number that is reported.
        first_frame: give that of the first frames too.
    """

    def compute(media: MediaSet, networks: Networks) -> Scores:
        if not media.originals:
            raise UnavailableError("there is nothing to compare with: give the originals with --against.")
        values = {video.name: of_frames(video, media.originals[video.name]) for video in media.videos}
        details: dict[str, float | str] = {"worst_frame": shown(float(worst(worst(v) for v in values.values())))}
        if first_frame:
            details["first_frame"] = shown(float(np.mean([v[0] for v in values.values()])))
        per_video = {name: shown(float(v.mean())) for name, v in values.items()}
        return Scores(shown(float(np.mean([v.mean() for v in values.values()]))), per_video, details=details)

    return compute


def _ssim(video: Video, original: Video) -> NDArray[np.float64]:
    if min(video.frames.shape[1:3]) < WINDOW:
        raise UnavailableError(f"{video.name} is smaller than SSIM's window of {WINDOW} pixels.")
    return ssim(video.frames, original.frames)


def _latents(video: Video, original: Video) -> NDArray[np.float64]:
    if video.latents is None or original.latents is None:
        raise UnavailableError(f"{video.name} and its original do not both have latents (NAME.latents.npy).")
    if video.latents.shape != original.latents.shape:
        raise UnavailableError(f"the latents of {video.name} and of its original differ in shape.")
    return latent_relative_l2(video.latents, original.latents)


# Errors are averaged, not decibels: one equal frame would make their mean infinite.
psnr_against_originals = _against_originals(
    lambda video, original: mean_squared_errors(video.frames, original.frames), max, psnr, first_frame=True
)
ssim_against_originals = _against_originals(_ssim, min)
latents_against_originals = _against_originals(_latents, max)
