"""Decoded latents -> pixels."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float32]


def frames_to_uint8(decoded: FloatArray) -> npt.NDArray[np.uint8]:
    """The VAE decoder's output as 8-bit RGB: clamp(x/2 + 0.5, 0, 1) * 255, TRUNCATED as in the published code.

    Args:
        decoded: float [b, 3, h, w], nominally -1..1.

    Returns:
        uint8 [b, h, w, 3], contiguous.
    """
    pixels = decoded.astype(np.float32)  # a copy: the rest works in place
    pixels *= np.float32(0.5)
    pixels += np.float32(0.5)
    np.clip(pixels, 0, 1, out=pixels)
    pixels *= np.float32(255)
    return np.ascontiguousarray(pixels.astype(np.uint8).transpose(0, 2, 3, 1))
