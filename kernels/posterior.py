"""The VAE encoder's posterior: a diagonal Gaussian over latents (https://arxiv.org/abs/1312.6114)."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float32]


def posterior_sample(mean: FloatArray, logvar: FloatArray, noise: FloatArray, scaling_factor: float) -> FloatArray:
    """Sample the posterior and scale it: scaling_factor (mean + exp(logvar / 2) noise).

    logvar is clamped to -30..20 first, as diffusers' DiagonalGaussianDistribution does.

    Args:
        mean, logvar: float32 [b, c, h, w], the two halves of the VAE encoder's output.
        noise: float32 [b, c, h, w], standard normal.
        scaling_factor: 0.18215 for Stable Diffusion's VAE.

    Returns:
        float32 [b, c, h, w].
    """
    std = np.exp(np.float32(0.5) * np.clip(logvar, -30, 20))
    return (mean + std * noise) * np.float32(scaling_factor)
