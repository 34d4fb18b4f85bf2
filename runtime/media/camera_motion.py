"""Camera motion: one photo seen through a moving crop, the static video that FrameInit takes its low frequencies from.

The published pipeline resizes the photo so that its smaller side is the video's height (pans) or twice that (zooms),
and takes one crop per frame. The position of frame i is i / frames, so the last crop stops one step before the end.

Source: ConsistI2V, section 4 (camera motion control), https://arxiv.org/abs/2402.04324.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from ...errors import UserError
from ..request.choices import CAMERA_MOTIONS
from .fit import filled
from .image import FloatArray, Window, centre_offset, covering_size, normalise, resize_window, rgb_pixels

_ZOOM = 1.5


def pan_boxes(motion: str, frames: int, image_height: int, image_width: int, side: int) -> list[Window]:
    """The ``side`` x ``side`` crop of each frame of a pan, in pixels of an image whose smaller side is ``side``.

    The crop moves over the width. Rows are all of them where the height is ``side``; in an upright photo, where nothing
    can be panned, they are the centre ones.
    """
    top = centre_offset(image_height, side)
    travel = image_width - side
    boxes = []
    for index in range(frames):
        progress = index / frames
        left = int(travel * (progress if motion == "pan_right" else 1 - progress))
        boxes.append(Window(top, left, side, side))
    return boxes


def zoom_boxes(motion: str, frames: int, image_height: int, image_width: int) -> list[Window]:
    """The centred square of each frame of a zoom between the whole smaller side and that divided by 1.5.

    The published ``zoom_out`` raises TypeError (its smallest side is a float); these are the boxes it means.
    """
    largest = min(image_height, image_width)
    smallest = int(largest // _ZOOM)
    boxes = []
    for index in range(frames):
        change = int((largest - smallest) * (index / frames))
        side = largest - change if motion == "zoom_in" else smallest + change
        boxes.append(Window((image_height - side) // 2, (image_width - side) // 2, side, side))
    return boxes


def camera_motion_crops(
    image: Image.Image, motion: str, frames: int, height: int, width: int, fit: str = "crop"
) -> FloatArray:
    """The crops of an RGB image for a camera motion: float32 [frames, 3, height, width] in [-1, 1].

    ``motion`` is one of :data:`CAMERA_MOTIONS`; ``height`` and ``width`` must be equal, as published. Frame 0 is the
    first frame of the video. With ``fit`` "pad" or "stretch" a zoom shows the whole photo, padded or stretched to a
    square; a pan moves over what "crop" would cut off. Raises :class:`UserError` for another motion or a video that is
    not square.
    """
    if motion not in CAMERA_MOTIONS:
        raise UserError(f'camera motion "{motion}" is not known, so choose one of {", ".join(CAMERA_MOTIONS)}.')
    if height != width:
        raise UserError(
            f"camera motion needs a square video, not {height}x{width}, so set the height and the width to one value."
        )
    pixels = rgb_pixels(image)
    image_height, image_width = pixels.shape[:2]
    if motion.startswith("pan"):
        size = covering_size(image_height, image_width, height, width)
        boxes = pan_boxes(motion, frames, *size, side=height)
        return np.stack([normalise(resize_window(pixels, size, box)) for box in boxes])

    if fit == "crop":
        size = covering_size(image_height, image_width, 2 * height, 2 * width)
        side = min(size)
        # Every box lies in the centred square, so nothing outside it is resized: a panorama costs no more.
        square = Window((size[0] - side) // 2, (size[1] - side) // 2, side, side)
        enlarged = resize_window(pixels, size, square)
    else:
        size = 2 * height, 2 * width
        square = Window(0, 0, *size)
        enlarged = filled(image, *size, fit)
    boxes = zoom_boxes(motion, frames, *size)
    enlarged = normalise(enlarged).transpose(1, 2, 0)
    crops = np.empty((frames, 3, height, width), np.float32)
    for crop, box in zip(crops, boxes, strict=True):
        top, left = box.top - square.top, box.left - square.left
        inside = enlarged[top : top + box.height, left : left + box.width]
        crop[:] = resize_window(inside, (height, width), Window(0, 0, height, width)).transpose(2, 0, 1)
    return crops
