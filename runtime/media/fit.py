"""How a photo fills a video: cropped as published, padded, stretched, or seen through a moving crop.

Camera motion gives the video that FrameInit takes its low frequencies from. The published pipeline resizes the photo so
that its smaller side is the video's height (pans) or twice that (zooms), and takes one crop per frame. The position of
frame i is i / frames, so the last crop stops one step before the end. Source: ConsistI2V, section 4,
https://arxiv.org/abs/2402.04324.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from .image import FloatArray, Window, centre_offset, covering_size, normalise, preprocess, resize_window, rgb_pixels

_ZOOM = 1.5


def fit_image(image: Image.Image, height: int, width: int, fit: str) -> FloatArray:
    """RGB image -> float32 [1, 3, height, width] in [-1, 1]; `fit` is crop, pad or stretch."""
    if fit == "crop":
        return preprocess(image, height, width)
    return normalise(_filled(image, height, width, fit))[None]


def _filled(image: Image.Image, height: int, width: int, fit: str) -> FloatArray:
    """The whole image in float32 [height, width, 3] in [0, 1]: "pad" with black bars, or "stretch"."""
    pixels = rgb_pixels(image)
    inner = height, width
    if fit == "pad":
        scale = min(height / pixels.shape[0], width / pixels.shape[1])
        inner = tuple(  # type: ignore[assignment]
            max(1, min(most, round(side * scale))) for most, side in zip(inner, pixels.shape, strict=False)
        )
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    canvas = np.zeros((height, width, 3), np.float32)
    canvas[top : top + inner[0], left : left + inner[1]] = resize_window(pixels, inner, Window(0, 0, *inner))
    return canvas


def cropped_shares(image_height: int, image_width: int, height: int, width: int) -> tuple[float, float]:
    """The shares of a photo's height and width that "crop" cuts off, 0 to 1."""
    size = covering_size(image_height, image_width, height, width)
    return 1 - height / size[0], 1 - width / size[1]


def pan_boxes(motion: str, frames: int, image_height: int, image_width: int, height: int, width: int) -> list[Window]:
    """The ``height`` x ``width`` crop of each frame of a pan, in pixels of an image that covers it.

    The crop moves over the width. Rows are all of them where the image has ``height``; in an upright photo, where
    nothing can be panned, they are the centre ones.
    """
    top, travel = centre_offset(image_height, height), image_width - width
    shares = [index / frames if motion == "pan_right" else 1 - index / frames for index in range(frames)]
    return [Window(top, int(travel * share), height, width) for share in shares]


def zoom_boxes(motion: str, frames: int, image_height: int, image_width: int, aspect: float = 1.0) -> list[Window]:
    """The centred box of each frame of a zoom between the largest box of its shape and that divided by 1.5.

    Published for squares. The published ``zoom_out`` raises TypeError (its smallest side is a float); these are the
    boxes it means.

    Args:
        aspect: width over height of the box.
    """
    largest = min(image_height, int(image_width / aspect))
    smallest = int(largest // _ZOOM)
    changes = [int((largest - smallest) * (index / frames)) for index in range(frames)]
    sides = [largest - change if motion == "zoom_in" else smallest + change for change in changes]
    boxes = [(side, min(image_width, round(side * aspect))) for side in sides]
    return [Window((image_height - high) // 2, (image_width - wide) // 2, high, wide) for high, wide in boxes]


def camera_motion_crops(
    image: Image.Image, motion: str, frames: int, height: int, width: int, fit: str = "crop"
) -> FloatArray:
    """The crops of an RGB image for a camera motion: float32 [frames, 3, height, width] in [-1, 1].

    ``motion`` is one of :data:`~.option_table.CAMERA_MOTIONS`; published for equal ``height`` and ``width``. Frame 0
    is the first frame of the video. With ``fit`` "pad" or "stretch" a zoom shows the whole photo, padded or stretched
    to the video's shape; a pan moves over what "crop" would cut off.
    """
    pixels = rgb_pixels(image)
    image_height, image_width = pixels.shape[:2]
    if motion.startswith("pan"):
        size = covering_size(image_height, image_width, height, width)
        boxes = pan_boxes(motion, frames, *size, height, width)
        return np.stack([normalise(resize_window(pixels, size, box)) for box in boxes])
    if fit == "crop":
        size = covering_size(image_height, image_width, 2 * height, 2 * width)
        # Every box lies in the largest one, so nothing outside it is resized: a panorama costs no more.
        whole = zoom_boxes("zoom_in", 1, *size, width / height)[0]
        enlarged = resize_window(pixels, size, whole)
    else:
        size = 2 * height, 2 * width
        whole = Window(0, 0, *size)
        enlarged = _filled(image, *size, fit)
    enlarged = normalise(enlarged).transpose(1, 2, 0)
    crops = np.empty((frames, 3, height, width), np.float32)
    for crop, box in zip(crops, zoom_boxes(motion, frames, *size, width / height), strict=True):
        top, left = box.top - whole.top, box.left - whole.left
        inside = enlarged[top : top + box.height, left : left + box.width]
        crop[:] = resize_window(inside, (height, width), Window(0, 0, height, width)).transpose(2, 0, 1)
    return crops
