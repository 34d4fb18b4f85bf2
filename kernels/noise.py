"""Initial noise that is correlated between frames.

PYoCo, https://arxiv.org/abs/2305.10474 (mixed and progressive noise models); ConsistI2V uses "pyoco_mixed".
"""

from __future__ import annotations

import math

import numpy as np

from . import FloatArray

NOISE_KINDS = ("pyoco_mixed", "pyoco_progressive", "vanilla")


def base_noise_shape(kind: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Shape of the noise to draw BEFORE the independent noise, so that a seed means what it does in the published code.

    Args:
        kind: one of ``NOISE_KINDS``.
        shape: (b, c, T, h, w) of the initial noise, which is also the shape of the independent noise.

    Returns:
        (b, c, 1, h, w) for "pyoco_mixed"; all of ``shape`` for "pyoco_progressive", of which only frame 0 is used;
        None for "vanilla", which draws once.
    """
    if kind == "vanilla":
        return None
    return shape if kind == "pyoco_progressive" else (*shape[:2], 1, *shape[3:])


def mix_noise(kind: str, base: FloatArray | None, independent: FloatArray, alpha: float) -> FloatArray:
    """Combine two draws of standard normal noise into noise with unit variance that is correlated in time.

    With r = sqrt(a^2 / (1 + a^2)) and s = sqrt(1 / (1 + a^2)):

    * ``pyoco_mixed``: r base + s independent_j. Correlation between any two frames: r^2 (0.5 at a = 1).
    * ``pyoco_progressive``: x_0 = base_0; x_j = r x_{j-1} + s independent_j. Correlation: r^|i - j|.
    * ``vanilla``: independent, as it is.

    Args:
        kind: one of ``NOISE_KINDS``.
        base: float32 of shape :func:`base_noise_shape`; None for "vanilla".
        independent: float32 [b, c, T, h, w].
        alpha: a, at least 0; 0 leaves frames 1.. independent.

    Returns:
        float32 [b, c, T, h, w].

    Raises:
        ValueError: unknown kind.
    """
    if kind not in NOISE_KINDS:
        raise ValueError(f"Unknown noise kind {kind!r}: choose one of {', '.join(NOISE_KINDS)}.")
    if base is None:
        return independent
    kept = math.sqrt(alpha**2 / (1 + alpha**2))
    fresh = math.sqrt(1 / (1 + alpha**2))
    if kind == "pyoco_mixed":
        return base * np.float32(kept) + independent * np.float32(fresh)
    # The recursion unrolled to x_j = sum_i W[j, i] source_i: kept^j for i = 0, fresh kept^(j - i) for 0 < i <= j.
    b, c, frames, h, w = independent.shape
    lag = np.subtract.outer(np.arange(frames), np.arange(frames))
    weights = np.where(lag >= 0, kept ** np.maximum(lag, 0), 0.0)
    weights[:, 1:] *= fresh
    source = np.concatenate([base[:, :, :1], independent[:, :, 1:]], axis=2).reshape(b, c, frames, h * w)
    return np.matmul(weights.astype(np.float32), source).reshape(b, c, frames, h, w)
