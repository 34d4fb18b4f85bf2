"""Guidance and sampler step in one: what a GPU does between two U-Net runs."""

from __future__ import annotations

import numpy as np

from consisti2v_rt.kernels.guidance import rescale_factor
from consisti2v_rt.kernels.sampler import sampler_step


def guided_prediction(noise_preds: np.ndarray, weights: np.ndarray, rescale: float = 0.0) -> np.ndarray:
    """e = sum_b w_b e_b of float [branches, videos, ...], branches of weight 0 left out, rescaled for rescale > 0."""
    guided = np.zeros(noise_preds.shape[1:], np.float32)
    for weight, prediction in zip(weights, noise_preds, strict=True):
        if weight != 0:
            guided += np.float32(weight) * prediction.astype(np.float32)
    if rescale > 0:
        guided *= rescale_factor(noise_preds[-1], guided, rescale)
    return guided


def guided_step(
    state: np.ndarray,
    noise_preds: np.ndarray,
    weights: np.ndarray,
    matrix: np.ndarray,
    noise: np.ndarray | None = None,
    rescale: float = 0.0,
) -> np.ndarray:
    """The new state, float32 [S, videos, ...]: :func:`guided_prediction`, then the sampler's map."""
    return sampler_step(state, guided_prediction(noise_preds, weights, rescale), matrix, noise)
