"""What a video shows of a camera move, read from optical flow (OpenCV's DIS, arXiv:1603.03590).

Flow is where a picture goes from one frame to the next; the picture runs against the camera.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....runtime.install import install_hint

_UPSCALE = 4
"""DIS looks at 8-pixel patches: small frames are enlarged for it, and its flow scaled back."""


@dataclass(frozen=True)
class Motion:
    """Least-squares similarity fitted to a flow field, in frame widths per frame (1 = the whole width)."""

    right: float
    """Mean horizontal flow."""
    down: float
    """Mean vertical flow."""
    growth: float
    """Rate at which the picture grows from its centre; half the flow's divergence."""
    turn: float
    """Radians per frame, clockwise as seen; half the flow's curl."""
    speed: float
    """Mean length of the flow."""


def mean_motion(frames: NDArray[np.uint8]) -> Motion:
    """Motion of a clip uint8 [f, h, w, 3], per frame: the mean of the flows between neighbouring frames."""
    fields = [flow(first, second) for first, second in pairwise(frames)]
    return fit_motion(np.mean(fields, axis=0))


def flow(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float32]:
    """DIS optical flow (medium preset) between two frames [h, w, 3]: float32 [h, w, 2], pixels, right and down."""
    cv2 = _cv2()
    size = (first.shape[1] * _UPSCALE, first.shape[0] * _UPSCALE)
    grey = [
        cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_CUBIC)
        for image in (first, second)
    ]
    field = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(*grey, None)
    small: NDArray[np.float32] = cv2.resize(field, first.shape[1::-1], interpolation=cv2.INTER_AREA) / _UPSCALE
    return small


def fit_motion(field: NDArray[np.floating[Any]]) -> Motion:
    """Shift, growth and turn of a flow field [h, w, 2] in pixels."""
    height, width = field.shape[:2]
    x = (np.arange(width) - (width - 1) / 2)[None, :]
    y = (np.arange(height) - (height - 1) / 2)[:, None]
    u, v = field[..., 0], field[..., 1]
    radius = float((x**2 + y**2).sum())
    return Motion(
        right=float(u.mean()) / width,
        down=float(v.mean()) / width,
        growth=float((x * u + y * v).sum()) / radius,
        turn=float((x * v - y * u).sum()) / radius,
        speed=float(np.hypot(u, v).mean()) / width,
    )


# The part of a motion that shows each move: component and sign. The picture runs against the camera.
_SIGNS = {
    "pan_left": ("right", 1),
    "pan_right": ("right", -1),
    "pan_up": ("down", 1),
    "pan_down": ("down", -1),
    "zoom_in": ("growth", 1),
    "zoom_out": ("growth", -1),
    "rotate_clockwise": ("turn", 1),
    "rotate_counterclockwise": ("turn", -1),
}


def agrees(motion: Motion, move: str, still_speed: float) -> bool:
    """Whether a motion is the named camera move.

    A pan: the mean flow is faster than `still_speed` and within 45 degrees of its direction. A zoom or turn: the sign
    of growth or turn is right, and the motion it makes at the frame's edge (half a width away) exceeds `still_speed`.
    Still: the mean flow length is below `still_speed`.
    """
    if move == "still":
        return motion.speed < still_speed
    name, sign = _SIGNS[move]
    value = sign * float(getattr(motion, name))
    if name in ("right", "down"):
        across = abs(motion.down if name == "right" else motion.right)
        return value > still_speed and value > across
    return value / 2 > still_speed


def signed_amount(motion: Motion, move: str) -> float:
    """How much of the move there is, positive in its own direction; for still, the mean flow length."""
    if move == "still":
        return motion.speed
    name, sign = _SIGNS[move]
    return sign * float(getattr(motion, name))


def _cv2() -> Any:
    try:
        import cv2
    except ImportError:
        from ....errors import UserError

        raise UserError(f"optical flow needs OpenCV: {install_hint('quality')}.") from None
    return cv2
