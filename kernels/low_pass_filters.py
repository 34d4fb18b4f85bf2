"""Low-pass filters over (time, height, width) frequencies, as FreeInit published them.

FreeInit, https://arxiv.org/abs/2312.07537; ConsistI2V's FrameInit uses them, https://arxiv.org/abs/2402.04324.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float32]

FILTER_KINDS = ("gaussian", "butterworth", "ideal", "box")


def low_pass_filter(
    kind: str, frames: int, height: int, width: int, d_s: float, d_t: float, order: int = 4
) -> FloatArray:
    """Build a filter in the published shifted layout: frequency index N//2 of each axis is the lowest one.

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

    Returns:
        float32 [T, H, W].

    Raises:
        ValueError: unknown kind, a size or order below 1, or a stop frequency that is negative or not finite.
    """
    if kind not in FILTER_KINDS:
        raise ValueError(f"Unknown low-pass filter {kind!r}: choose one of {', '.join(FILTER_KINDS)}.")
    if min(frames, height, width) < 1:
        raise ValueError(f"A filter of {frames}×{height}×{width} is empty: give at least 1 for each size.")
    if order < 1:
        raise ValueError(f"Butterworth order {order} is too low: give a whole number of at least 1.")
    for name, value in (("d_s", d_s), ("d_t", d_t)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}={value} is no stop frequency: give a finite number of at least 0.")

    if d_s == 0 or d_t == 0:
        return np.zeros((frames, height, width), np.float32)
    if kind == "box":
        return _box(frames, height, width, d_s, d_t)
    d2 = _squared_distance(frames, height, width, d_s / d_t)
    if kind == "ideal":
        return (d2 <= d_s * 2).astype(np.float32)
    # Far outside the pass band a tiny d_s overflows float64; the limit, 0, is what is meant.
    with np.errstate(over="ignore", under="ignore"):
        if kind == "gaussian":
            return np.exp(-1 / (2 * d_s**2) * d2).astype(np.float32)
        return (1 / (1 + (d2 / d_s**2) ** order)).astype(np.float32)


def _squared_distance(frames: int, height: int, width: int, time_scale: float) -> npt.NDArray[np.float64]:
    """d2 [T, H, W]; per-axis terms in Python floats and summed in the published order, so `ideal` compares equally."""
    t = np.array([(time_scale * (2 * i / frames - 1)) ** 2 for i in range(frames)])
    h = np.array([(2 * i / height - 1) ** 2 for i in range(height)])
    w = np.array([(2 * i / width - 1) ** 2 for i in range(width)])
    return t[:, None, None] + h[None, :, None] + w[None, None, :]


def _box(frames: int, height: int, width: int, d_s: float, d_t: float) -> FloatArray:
    # Python's round, half to even, and the height's threshold for the width too: both as published.
    reach_s = round(height // 2 * d_s)
    reach_t = round(frames // 2 * d_t)
    t, h, w = (
        slice(size // 2 - reach, size // 2 + reach)
        for size, reach in ((frames, reach_t), (height, reach_s), (width, reach_s))
    )
    mask = np.zeros((frames, height, width), np.float32)
    mask[t, h, w] = 1
    return mask
