"""FrameInit: start from the low frequencies of a still video and the high frequencies of noise.

ConsistI2V, https://arxiv.org/abs/2402.04324, after FreeInit, https://arxiv.org/abs/2312.07537.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from .ddim import add_noise
from .low_pass_filters import low_pass_filter

FloatArray: TypeAlias = npt.NDArray[np.float32]

_AXES = (-3, -2, -1)


def half_spectrum_mask(low_pass: FloatArray) -> FloatArray:
    """Turn a shifted low-pass filter into the mask that a real-input FFT is multiplied with.

    The published code keeps the real part of IFFT(L F(x)). For real x that part is IFFT(M F(x)) with the
    Hermitian-symmetric mask M(k) = (L(k) + L(-k)) / 2, and such a product is fully given by its half spectrum.
    M differs from L wherever L is off centre: all odd sizes, and the box filter.

    Args:
        low_pass: float32 [T, H, W], lowest frequency at N//2 (the layout of :func:`low_pass_filter`).

    Returns:
        float32 [T, H, W//2 + 1], lowest frequency at 0.
    """
    unshifted = np.fft.ifftshift(low_pass)
    mirrored = np.roll(np.flip(unshifted), 1, axis=_AXES)
    symmetric = (unshifted + mirrored) * np.float32(0.5)
    return np.ascontiguousarray(symmetric[..., : low_pass.shape[-1] // 2 + 1], dtype=np.float32)


@lru_cache(maxsize=16)
def frame_init_mask(
    kind: str, frames: int, height: int, width: int, d_s: float, d_t: float, order: int = 4
) -> FloatArray:
    """The half-spectrum mask of a named filter, float32 [T, H, W//2 + 1], cached and read-only.

    Arguments and errors are those of :func:`low_pass_filter`.
    """
    mask = half_spectrum_mask(low_pass_filter(kind, frames, height, width, d_s, d_t, order))
    mask.flags.writeable = False
    return mask


def mix_frequencies(low: FloatArray, high: FloatArray, mask: FloatArray) -> FloatArray:
    """Low frequencies of one video with the high frequencies of another: IFFT(M F(low) + (1 - M) F(high)).

    The mix is linear, so high + IFFT(M F(low - high)) says the same with one transform each way.

    Args:
        low, high: float32 [..., T, H, W].
        mask: float32 [T, H, W//2 + 1], see :func:`half_spectrum_mask`.

    Returns:
        float32 [..., T, H, W].

    Raises:
        ValueError: the mask was built for another size.
    """
    frames, height, width = high.shape[-3:]
    if mask.shape != (frames, height, width // 2 + 1):
        raise ValueError(
            f"The FrameInit mask of shape {mask.shape} does not fit latents of {frames}×{height}×{width}: "
            f"build it with frame_init_mask for this size."
        )
    # "ortho" both ways: a factor of exactly 1 makes NumPy 2 transform float32 in float64 loops, five times slower.
    spectrum = np.fft.rfftn(low - high, axes=_AXES, norm="ortho")
    spectrum *= mask
    correction = np.fft.irfftn(spectrum, s=(frames, height, width), axes=_AXES, norm="ortho")
    # NumPy before 2.0 transforms in float64 whatever it is given.
    return high + correction.astype(np.float32, copy=False)


def frame_init(static_latents: FloatArray, noise: FloatArray, alpha_cumprod: float, mask: FloatArray) -> FloatArray:
    """Initial latents of the denoising loop.

    z = sqrt(abar) static + sqrt(1 - abar) noise, the still video diffused to the FrameInit noise level with the
    SAME noise that gives the high frequencies; then :func:`mix_frequencies` (z, noise, mask).

    Args:
        static_latents: float32 [b, c, T, h, w], or [b, c, 1, h, w] for one frame held still.
        noise: float32 [b, c, T, h, w]; T includes the first frame.
        alpha_cumprod: abar at the noise level (timestep 850 as published).
        mask: float32 [T, h, w//2 + 1] from :func:`frame_init_mask`.

    Returns:
        float32 [b, c, T, h, w].

    Raises:
        ValueError: the mask was built for another size.
    """
    return mix_frequencies(add_noise(static_latents, noise, alpha_cumprod), noise, mask)
