"""FrameInit: start from the low frequencies of a still video and the high frequencies of noise.

ConsistI2V, https://arxiv.org/abs/2402.04324, after FreeInit, https://arxiv.org/abs/2312.07537.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from . import FloatArray
from .ddim import add_noise

FILTER_KINDS = ("gaussian", "butterworth", "ideal", "box")
_AXES = (-3, -2, -1)


def low_pass_filter(
    kind: str, frames: int, height: int, width: int, d_s: float, d_t: float, order: int = 4
) -> FloatArray:
    """A filter in FreeInit's shifted layout, float32 [T, H, W]: frequency index N//2 of each axis is the lowest one.

    With the squared, normalised distance of frequency (t, h, w) from the centre
    d2 = ((d_s/d_t) (2t/T - 1))^2 + (2h/H - 1)^2 + (2w/W - 1)^2:

    * ``gaussian``: exp(-d2 / (2 d_s^2))
    * ``butterworth``: 1 / (1 + (d2 / d_s^2)^order)
    * ``ideal``: 1 where d2 <= 2 d_s (the published threshold, not d_s^2), else 0
    * ``box``: 1 within round(H//2 * d_s) of the centre in height AND width and within round(T//2 * d_t) of it in
      time, upper end excluded, else 0. A window that is wider than the axis starts at a negative index and wraps,
      as slices do; kept, because results of the published code depend on it.

    For an odd size the centre of d2 lies between two indices, so the peak is below 1; kept for the same reason.

    Args:
        kind: one of ``FILTER_KINDS``.
        frames, height, width: T, H, W of the latents, T including the first frame.
        d_s, d_t: spatial and temporal stop frequency, normalised, at least 0; 0 for either gives a filter of zeros.
        order: order of the Butterworth filter, at least 1; unused by the others.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in FILTER_KINDS:
        raise ValueError(f"Unknown low-pass filter {kind!r}: choose one of {', '.join(FILTER_KINDS)}.")
    if d_s == 0 or d_t == 0:
        return np.zeros((frames, height, width), np.float32)
    if kind == "box":
        # Python's round, half to even, and the height's threshold for the width too: both as published.
        spatial = round(height // 2 * d_s)
        reaches = (frames, round(frames // 2 * d_t)), (height, spatial), (width, spatial)
        box = np.zeros((frames, height, width), np.float32)
        box[tuple(slice(size // 2 - reach, size // 2 + reach) for size, reach in reaches)] = 1
        return box
    # Terms of each axis in Python floats, summed in the published order, so that `ideal` compares equally.
    t, h, w = (
        np.array([(scale * (2 * i / size - 1)) ** 2 for i in range(size)])
        for size, scale in ((frames, d_s / d_t), (height, 1), (width, 1))
    )
    d2 = t[:, None, None] + h[None, :, None] + w[None, None, :]
    if kind == "ideal":
        return (d2 <= d_s * 2).astype(np.float32)
    # Far outside the pass band a tiny d_s overflows float64; the limit, 0, is what is meant.
    with np.errstate(over="ignore", under="ignore"):
        if kind == "gaussian":
            return np.exp(-1 / (2 * d_s**2) * d2).astype(np.float32)
        return (1 / (1 + (d2 / d_s**2) ** order)).astype(np.float32)


def half_spectrum_mask(low_pass: FloatArray) -> FloatArray:
    """Turn a shifted low-pass filter [T, H, W] into the mask of a real-input FFT [T, H, W//2 + 1], lowest one at 0.

    The published code keeps the real part of IFFT(L F(x)). For real x that part is IFFT(M F(x)) with the
    Hermitian-symmetric mask M(k) = (L(k) + L(-k)) / 2, and such a product is fully given by its half spectrum.
    M differs from L wherever L is off centre: all odd sizes, and the box filter.
    """
    unshifted = np.fft.ifftshift(low_pass)
    mirrored = np.roll(np.flip(unshifted), 1, axis=_AXES)
    symmetric = (unshifted + mirrored) * np.float32(0.5)
    return np.ascontiguousarray(symmetric[..., : low_pass.shape[-1] // 2 + 1], dtype=np.float32)


@lru_cache(maxsize=16)
def frame_init_mask(
    kind: str, frames: int, height: int, width: int, d_s: float, d_t: float, order: int = 4
) -> FloatArray:
    """The half-spectrum mask of a :func:`low_pass_filter`, float32 [T, H, W//2 + 1], cached and read-only."""
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
    """Initial latents of the denoising loop, float32 [b, c, T, h, w].

    z = sqrt(abar) static + sqrt(1 - abar) noise, the still video diffused to the FrameInit noise level with the
    SAME noise that gives the high frequencies; then :func:`mix_frequencies` (z, noise, mask).

    Args:
        static_latents: float32 [b, c, T, h, w], or [b, c, 1, h, w] for one frame held still.
        noise: float32 [b, c, T, h, w]; T includes the first frame.
        alpha_cumprod: abar at the noise level (timestep 850 as published).
        mask: float32 [T, h, w//2 + 1] from :func:`frame_init_mask`.

    Raises:
        ValueError: the mask was built for another size.
    """
    return mix_frequencies(add_noise(static_latents, noise, alpha_cumprod), noise, mask)
