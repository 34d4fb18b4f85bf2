"""The measures' formulas, on frames, features and optical flow.

Flickering, consistency, smoothness and dynamic degree are VBench's (Huang et al. 2023, arXiv:2311.17982).
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.media.read_video import Frames, Video
from .networks import Networks, opencv

Array = NDArray[np.float64]


def temporal_flickering(frames: Frames) -> float:
    """(255 - mean absolute difference of neighbouring frames) / 255; 1: nothing changes.

    Args:
        frames: uint8 [frames >= 2, h, w, 3].
    """
    return _closeness(itertools.pairwise(frames))


def motion_smoothness(frames: Frames, between: Callable[[Frames, Frames], Frames]) -> float:
    """(255 - mean absolute difference of the odd frames to those interpolated from their even neighbours) / 255.

    Args:
        frames: uint8 [frames >= 3, h, w, 3].
        between: the middle of two frames, uint8.
    """
    middles = itertools.starmap(between, itertools.pairwise(frames[::2]))
    return _closeness(zip(frames[1::2], middles, strict=False))


def _closeness(pairs: Any) -> float:
    differences = [np.abs(b.astype(np.float32) - a).mean(dtype=np.float64) for a, b in pairs]
    return float((255.0 - np.mean(differences)) / 255.0)


def frame_consistency(features: NDArray[np.float32]) -> float:
    """Mean over frames t > 0 of (max(0, f_t . f_{t-1}) + max(0, f_t . f_0)) / 2.

    Args:
        features: of unit length, [frames >= 2, d].
    """
    values = features.astype(np.float64)
    previous = np.maximum(0.0, (values[1:] * values[:-1]).sum(axis=1))
    first = np.maximum(0.0, values[1:] @ values[0])
    return float(((previous + first) / 2).mean())


# -- motion ------------------------------------------------------------------------------------------------------------


def top_magnitude(flow: NDArray[np.float32]) -> float:
    """Mean length of the 5 % largest vectors of a flow [h, w, 2], in pixels."""
    lengths = np.sort(np.hypot(flow[..., 0], flow[..., 1]).ravel())
    return float(lengths[-max(1, int(lengths.size * 0.05)) :].mean(dtype=np.float64))


def magnitudes(frames: Frames, network: Any) -> list[float]:
    """:func:`top_magnitude` of each neighbouring pair, by a network's ``flow``."""
    return [top_magnitude(network.flow(a, b)) for a, b in itertools.pairwise(frames)]


def moves(magnitudes: list[float], smaller_side: int) -> bool:
    """VBench's decision: enough pairs of frames move far enough.

    Args:
        magnitudes: :func:`top_magnitude` of each neighbouring pair, n - 1 of them for n frames.
        smaller_side: of the frames, in pixels: the threshold is 6 pixels at 256.
    """
    threshold, needed = 6.0 * smaller_side / 256.0, round(4 * (len(magnitudes) + 1) / 16.0)
    return sum(magnitude > threshold for magnitude in magnitudes) >= needed


def at_8_fps(video: Video) -> Frames:
    """Every round(fps / 8)-th frame, as VBench samples; never fewer than two."""
    sampled = video.frames[:: max(1, round(video.fps / 8))]
    return sampled if len(sampled) > 1 else video.frames


# What captions say, by move; the camera's view, not the picture: panning right runs the picture to the left.
_PHRASES = {
    **{f"pan_{way}": rf"\b(pan|tilt|mov)\w*\b[^,.]{{0,12}}\b{way}" for way in ("left", "right", "up", "down")},
    "zoom_in": r"zoom\w*\s+in|moves?\s+closer",
    "zoom_out": r"zoom\w*\s+out|moves?\s+away",
    "rotate_clockwise": r"(rotat|turn)\w*\s+clockwise",
    "rotate_counterclockwise": r"(rotat|turn)\w*\s+(counter|anti)-?clockwise",
    "still": r"\bstill\b|static camera|does not move",
}
STILL_BELOW = 0.25
"""Pixels a frame at a smaller side of 256: less than the slowest published-stride move, more than coding noise."""


def captioned_move(caption: str) -> str | None:
    """The one camera move that a caption names, or None (none, or several)."""
    found = [move for move, phrase in _PHRASES.items() if re.search(phrase, caption, re.IGNORECASE)]
    return found[0] if len(found) == 1 else None


@dataclass(frozen=True)
class MeanFlow:
    """The affine motion that fits the flow best, per frame, in pixels at a smaller side of 256."""

    right: float
    down: float
    """Of the picture's centre."""
    expansion: float
    """Relative growth a frame: half the divergence. Positive: the picture grows, as in zooming in."""
    turn: float
    """Radians a frame: half the curl. Positive: the picture turns clockwise."""
    radius: float
    """Mean distance of a point from the centre, in pixels: what growth and turn are multiplied by."""

    @property
    def move(self) -> str:
        """The strongest component by its mean displacement, as captions name it."""
        strengths = {
            ("pan_right", "pan_left"): -self.right,
            ("pan_down", "pan_up"): -self.down,
            ("zoom_in", "zoom_out"): self.expansion * self.radius,
            ("rotate_clockwise", "rotate_counterclockwise"): self.turn * self.radius,
        }
        names, strength = max(strengths.items(), key=lambda item: abs(item[1]))
        return "still" if abs(strength) < STILL_BELOW else names[0] if strength > 0 else names[1]


def fit_flow(flow: NDArray[np.float32]) -> MeanFlow:
    """Least-squares affine motion of a flow [h, w, 2]."""
    height, width = flow.shape[:2]
    x, y = np.arange(width) - (width - 1) / 2, np.arange(height) - (height - 1) / 2
    field = flow.astype(np.float64)
    # The grid is centred, so the three terms of the fit are orthogonal and each slope stands alone.
    du_dx, dv_dx = (field * x[None, :, None]).mean(axis=(0, 1)) / (x**2).mean()
    du_dy, dv_dy = (field * y[:, None, None]).mean(axis=(0, 1)) / (y**2).mean()
    right, down = field.mean(axis=(0, 1))
    radius = np.hypot(x[None, :], y[:, None]).mean()
    return MeanFlow(float(right), float(down), float(du_dx + dv_dy) / 2, float(dv_dx - du_dy) / 2, float(radius))


def mean_flow(frames: Frames, dis: Any) -> MeanFlow:
    """The mean over neighbouring frames of uint8 [frames >= 2, h, w, 3], by DIS flow."""
    fits = [fit_flow(dis.flow(a, b)) for a, b in itertools.pairwise(dis.scale(frames))]
    return MeanFlow(*(float(np.mean([getattr(fit, name) for fit in fits])) for name in MeanFlow.__annotations__))


# -- fidelity to an original -------------------------------------------------------------------------------------------

WINDOW = 11


def mean_squared_errors(frames: Frames, original: Frames) -> Array:
    """Of each frame, float64 [frames], of uint8 [frames, h, w, 3] of one shape."""
    pairs = zip(frames, original, strict=True)
    return np.array([((a.astype(np.float64) - b.astype(np.float64)) ** 2).mean() for a, b in pairs])


def psnr(mean_squared_error: float) -> float:
    """10 log10(255^2 / mean squared error), in dB; infinite for equal pictures."""
    return math.inf if mean_squared_error == 0 else 10.0 * math.log10(255.0**2 / mean_squared_error)


def ssim(frames: Frames, original: Frames) -> Array:
    """SSIM of each frame: 11x11 Gaussian window of sigma 1.5, where it fits whole; mean over places and RGB
    (Wang et al. 2004, doi:10.1109/TIP.2003.819861).

    Args:
        frames, original: uint8 [frames, h >= 11, w >= 11, 3] of one shape.

    Raises:
        UnavailableError: OpenCV is not installed.
    """
    cv2, inside, c1, c2 = opencv("SSIM"), slice(WINDOW // 2, -(WINDOW // 2)), (0.01 * 255) ** 2, (0.03 * 255) ** 2

    def blur(x: Array) -> Array:
        return np.asarray(cv2.GaussianBlur(x, (WINDOW, WINDOW), 1.5))[inside, inside]

    def of_frame(x: Array, y: Array) -> float:
        mean_x, mean_y = blur(x), blur(y)
        var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
        top = (2 * mean_x * mean_y + c1) * (2 * (blur(x * y) - mean_x * mean_y) + c2)
        return float((top / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean())

    pairs = zip(frames, original, strict=True)
    return np.array([of_frame(a.astype(np.float64), b.astype(np.float64)) for a, b in pairs])


def latent_relative_l2(latents: NDArray[np.float32], original: NDArray[np.float32]) -> Array:
    """|a - b| / |b| of each frame, float64 [frames], of [c, frames, h, w] of one shape."""
    a, b = (x.astype(np.float64).transpose(1, 0, 2, 3).reshape(x.shape[1], -1) for x in (latents, original))
    return np.asarray(np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1))


# -- a distance between sets -------------------------------------------------------------------------------------------

Blocks = tuple[Array, ...]


def video_features(video: Video, networks: Networks) -> Blocks:
    """What a video looks like, how that changes, and how things move: float64 [1280], [1280] and [6].

    Lite0 features: their mean over frames and the mean of their absolute change from frame to frame. DIS flow: median
    and 95th percentile of its length, of how it changes from pair to pair, and of how ill it explains the next frame;
    as logarithms.
    """
    appearance = networks.lite0.images(video.frames).astype(np.float64)
    change = np.abs(np.diff(appearance, axis=0)).mean(axis=0)
    dis = networks.dis
    pairs = list(itertools.pairwise(dis.scale(video.frames)))
    flows = [dis.flow(a, b) for a, b in pairs]
    lengths = np.stack([np.hypot(flow[..., 0], flow[..., 1]) for flow in flows])
    jerk = np.abs(np.diff(np.stack(flows), axis=0)) if len(flows) > 1 else np.zeros(1)
    unexplained = np.stack([np.abs(dis.warp(b, flow) - a) for (a, b), flow in zip(pairs, flows, strict=True)])
    motion = np.log1p([np.percentile(part, p) for part in (lengths, jerk, unexplained) for p in (50, 95)])
    return appearance.mean(axis=0), change, motion


def kernel_distance(a: Sequence[Blocks], b: Sequence[Blocks]) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x . y / blocks + 1)^3 (as KID, arXiv:1801.01401).

    Args:
        a, b: features of two videos or more; each block is scaled so that b's has mean square length 1, and so all
            blocks weigh alike.
    """

    def scaled(side: Sequence[Blocks]) -> Array:
        parts = []
        for own, reference in zip(zip(*side, strict=True), zip(*b, strict=True), strict=True):
            length = np.sqrt(np.mean([block @ block for block in reference]))
            parts.append(np.stack(own) / (length or 1.0))
        return np.concatenate(parts, axis=1)

    def kernel(x: Array, y: Array) -> Array:
        return np.asarray((x @ y.T / len(b[0]) + 1.0) ** 3)

    def within(x: Array) -> float:
        k, n = kernel(x, x), len(x)
        return float((k.sum() - np.trace(k)) / (n * (n - 1)))

    x, y = scaled(a), scaled(b)
    return within(x) + within(y) - 2.0 * float(kernel(x, y).mean())
