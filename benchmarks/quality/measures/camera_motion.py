"""What the camera does, from the mean optical flow, and whether it is what the caption says."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ....runtime.media.read_video import Frames
from ..measure import Scores, UnavailableError, require_frames
from ..media_set import MediaSet
from ..networks import Networks
from ..networks.flow import DisFlow

STILL_BELOW = 0.25
"""Pixels a frame at a smaller side of 256: less than the slowest published-stride move, more than coding noise."""

# What captions say, by move; the camera's view, not the picture: panning right runs the picture to the left.
_PHRASES = {
    **{f"pan_{way}": rf"\b(pan|tilt|mov)\w*\b[^,.]{{0,12}}\b{way}" for way in ("left", "right", "up", "down")},
    "zoom_in": r"zoom\w*\s+in|moves?\s+closer",
    "zoom_out": r"zoom\w*\s+out|moves?\s+away",
    "rotate_clockwise": r"(rotat|turn)\w*\s+clockwise",
    "rotate_counterclockwise": r"(rotat|turn)\w*\s+(counter|anti)-?clockwise",
    "still": r"\bstill\b|static camera|does not move",
}


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
        if abs(strength) < STILL_BELOW:
            return "still"
        return names[0] if strength > 0 else names[1]


def fit_flow(flow: NDArray[np.float32]) -> MeanFlow:
    """Least-squares affine motion of a flow [h, w, 2]."""
    height, width = flow.shape[:2]
    x = np.arange(width) - (width - 1) / 2
    y = np.arange(height) - (height - 1) / 2
    field = flow.astype(np.float64)
    # The grid is centred, so the three terms of the fit are orthogonal and each slope stands alone.
    du_dx, dv_dx = (field * x[None, :, None]).mean(axis=(0, 1)) / (x**2).mean()
    du_dy, dv_dy = (field * y[:, None, None]).mean(axis=(0, 1)) / (y**2).mean()
    right, down = field.mean(axis=(0, 1))
    radius = np.hypot(x[None, :], y[:, None]).mean()
    return MeanFlow(float(right), float(down), float(du_dx + dv_dy) / 2, float(dv_dx - du_dy) / 2, float(radius))


def mean_flow(frames: Frames, dis: DisFlow) -> MeanFlow:
    """The mean over neighbouring frames.

    Args:
        frames: uint8 [frames >= 2, h, w, 3].
        dis: the flow.
    """
    scaled = dis.scale(frames)
    fits = [fit_flow(dis.flow(a, b)) for a, b in itertools.pairwise(scaled)]
    right, down, expansion, turn = (
        float(np.mean([getattr(fit, name) for fit in fits])) for name in ("right", "down", "expansion", "turn")
    )
    return MeanFlow(right, down, expansion, turn, fits[0].radius)


def captioned_move(caption: str) -> str | None:
    """The one camera move that a caption names, or None (none, or several)."""
    found = [move for move, phrase in _PHRASES.items() if re.search(phrase, caption, re.IGNORECASE)]
    return found[0] if len(found) == 1 else None


def agreement(media: MediaSet, networks: Networks) -> Scores:
    """Of the videos whose caption names one camera move, the fraction that shows it.

    Raises:
        UnavailableError: no caption names one, or a video has one frame.
    """
    require_frames(media, 2)
    dis = networks.dis
    wanted = {video.name: captioned_move(video.caption or "") for video in media.videos}
    if not any(wanted.values()):
        raise UnavailableError("no caption names one camera move (pan left, zoom in, still ...).")
    seen = {video.name: mean_flow(video.frames, dis).move for video in media.videos if wanted[video.name]}
    per_video = {name: float(move == wanted[name]) for name, move in seen.items()}
    details: dict[str, float | str] = {f"{name}: asked {wanted[name]}": f"seen {move}" for name, move in seen.items()}
    return Scores(float(np.mean(list(per_video.values()))), per_video, dis.info, details)
