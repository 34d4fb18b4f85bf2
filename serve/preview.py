"""Latents as a small picture, by a linear map that is fitted to the bundle's own VAE when the worker warms up.

A VAE's latents are, roughly, a linear picture of the pixels that they stand for. The warming call gives latents and the
frames decoded from them; least squares over their positions gives the map, in a few milliseconds, for any bundle.
"""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_LONGEST_SIDE = 128
"""Pixels of a preview's longer side, at least, where the latents are smaller."""


class Preview:
    """The map of one VAE.

    Args:
        latents: float32 [videos, c, frames, h, w].
        frames: uint8 [videos, frames, height, width, 3], decoded from them.
    """

    def __init__(self, latents: NDArray[np.float32], frames: NDArray[np.uint8]) -> None:
        videos, channels, count, height, width = latents.shape
        factor = frames.shape[2] // height, frames.shape[3] // width
        blocks = frames.reshape(videos * count, height, factor[0], width, factor[1], 3).mean((2, 4)).reshape(-1, 3)
        rows = latents.transpose(0, 2, 3, 4, 1).reshape(-1, channels)
        self._map = np.linalg.lstsq(_with_one(rows), blocks, rcond=None)[0]

    def picture(self, latents: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Latents [c, h, w] -> uint8 [h, w, 3]."""
        channels, height, width = latents.shape
        colours = _with_one(latents.reshape(channels, -1).T) @ self._map
        return np.clip(np.rint(colours), 0, 255).astype(np.uint8).reshape(height, width, 3)

    def data_uri(self, latents: NDArray[np.float32]) -> str:
        """Latents [c, frames, h, w] -> the frame in their middle as a WebP of a few KB, as a data URI."""
        picture = Image.fromarray(self.picture(latents[:, latents.shape[1] // 2]))
        scale = max(1, _LONGEST_SIDE // max(picture.size))
        picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.BICUBIC)
        file = io.BytesIO()
        picture.save(file, "WEBP", quality=60, method=0)
        return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def _with_one(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.concatenate([rows, np.ones((len(rows), 1), np.float32)], axis=1)
