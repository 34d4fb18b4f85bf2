"""What stands around the VAE: a sample of the encoder's posterior, and the decoder's output as pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import FloatArray

FRAMES_AT_ONCE = (1, 4)
"""Frames that the decoder's engines take in one run, and that are tried: each is decoded by itself, and four keep a GPU
busier than one."""


def posterior_sample(mean: FloatArray, logvar: FloatArray, noise: FloatArray, scaling_factor: float) -> FloatArray:
    """Sample the encoder's diagonal Gaussian (https://arxiv.org/abs/1312.6114) and scale it:
    scaling_factor (mean + exp(logvar / 2) noise), all float32 [b, c, h, w].

    logvar is clamped to -30..20 first, as diffusers' DiagonalGaussianDistribution does.
    """
    std = np.exp(np.float32(0.5) * np.clip(logvar, -30, 20))
    return (mean + std * noise) * np.float32(scaling_factor)


def frames_to_uint8(decoded: FloatArray) -> NDArray[np.uint8]:
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
