"""The size of a file's pictures: frames enlarged or reduced on their way out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...errors import UserError
from ..request.settings import number

MIN_SCALE, MAX_SCALE = 0.1, 16
# Below, encoders refuse; above, H.264 has no level that players know.
MIN_SIDE, MAX_SIDE = 16, 4096


def scaled_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """Height and width times `scale`, in whole pixels.

    Raises:
        UserError: a factor that is not possible, or that leads to sides under 16 or over 4096 pixels.
    """
    scale = number(scale, "scale", MIN_SCALE, MAX_SCALE)
    if scale == 1:
        return height, width
    size = round(height * scale), round(width * scale)
    if not MIN_SIDE <= min(size) <= max(size) <= MAX_SIDE:
        raise UserError(
            f"scale {scale:g} would make {size[1]}x{size[0]} pixels of {width}x{height}: choose one that leads to "
            f"sides of {MIN_SIDE} to {MAX_SIDE} pixels."
        )
    return size


def scaled(frames: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    """uint8 frames [n, height, width, 3] with both sides times `scale`, by Lanczos' filter; 1 changes nothing.

    Raises:
        UserError: as :func:`scaled_size`.
    """
    height, width = scaled_size(frames.shape[1], frames.shape[2], scale)
    if scale == 1:
        return frames
    return np.stack(
        [np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)) for pixels in frames]
    )
