"""How a photo fills a video of another aspect: cropped as published, padded with black, or stretched."""

from __future__ import annotations

import numpy as np
from PIL import Image

from .image import FloatArray, Window, covering_size, normalise, preprocess, resize_window, rgb_pixels


def fit_photo(image: Image.Image, height: int, width: int, fit: str) -> FloatArray:
    """RGB image -> float32 [1, 3, height, width] in [-1, 1]; `fit` is one of :data:`~.choices.FITS`."""
    if fit == "crop":
        return preprocess(image, height, width)
    return normalise(filled(image, height, width, fit))[None]


def filled(image: Image.Image, height: int, width: int, fit: str) -> FloatArray:
    """The whole RGB image in float32 [height, width, 3] in [0, 1]: "pad" with black bars, or "stretch".

    Resized as everywhere: bilinear, half-pixel centres, no antialiasing.
    """
    pixels = rgb_pixels(image)
    inner_height, inner_width = height, width
    if fit == "pad":
        scale = min(height / pixels.shape[0], width / pixels.shape[1])
        inner_height = max(1, min(height, round(pixels.shape[0] * scale)))
        inner_width = max(1, min(width, round(pixels.shape[1] * scale)))
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    canvas = np.zeros((height, width, 3), np.float32)
    whole = Window(0, 0, inner_height, inner_width)
    canvas[top : top + inner_height, left : left + inner_width] = resize_window(
        pixels, (inner_height, inner_width), whole
    )
    return canvas


def cropped_shares(image_height: int, image_width: int, height: int, width: int) -> tuple[float, float]:
    """The shares of a photo's height and width that "crop" cuts off, 0 to 1."""
    size = covering_size(image_height, image_width, height, width)
    return 1 - height / size[0], 1 - width / size[1]
