"""Guidance and sampler step in one: what a GPU does between two U-Net runs.

Guidance as weights: the sum e = sum_b w_b e_b says the same as :func:`~.guidance.combine_guidance` does with
differences, to float32 rounding. Rescale: https://arxiv.org/abs/2305.08891 section 3.4.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .sampler import linear_step

FloatArray: TypeAlias = npt.NDArray[np.float32]


def guided_prediction(noise_preds: npt.NDArray[Any], weights: FloatArray, rescale: float = 0.0) -> FloatArray:
    """e = sum_b w_b e_b, branches of weight 0 left out, rescaled to the spread of the last branch for rescale > 0.

    Args:
        noise_preds: float [branches, videos, ...], the prompt's branch last.
        weights: float32 [branches].
        rescale: r of e <- r e std(e_p) / std(e) + (1 - r) e; the unbiased std of each video in float64. 0 is off.

    Returns:
        float32 [videos, ...].

    Raises:
        ValueError: another number of weights than of branches, or a rescale outside 0..1.
    """
    if len(weights) != len(noise_preds) or len(weights) == 0:
        raise ValueError(f"{len(weights)} guidance weights for {len(noise_preds)} predictions: give one per branch.")
    if not 0 <= rescale <= 1:
        raise ValueError(f"Guidance rescale {rescale} is not allowed: give a number from 0 (off) to 1.")
    guided = np.zeros(noise_preds.shape[1:], np.float32)
    for weight, prediction in zip(weights, noise_preds, strict=True):
        if weight != 0:
            guided += np.float32(weight) * prediction.astype(np.float32)
    if rescale > 0:
        factor = rescale * _std(noise_preds[-1]) / _std(guided) + (1 - rescale)
        guided *= factor.astype(np.float32)
    return guided


def guided_step(
    state: FloatArray,
    noise_preds: npt.NDArray[Any],
    weights: FloatArray,
    matrix: FloatArray,
    noise: FloatArray | None = None,
    rescale: float = 0.0,
) -> FloatArray:
    """One denoising step from the predictions of all branches: :func:`guided_prediction`, then the sampler's map.

    Args:
        state: float32 [S, videos, ...].
        noise_preds: float [branches, videos, ...], the prompt's branch last.
        weights: float32 [branches].
        matrix: float32 [S, S + 2], see :class:`~.sampler.StepTable`.
        noise: float32 [videos, ...], standard normal; needed where its weight is not 0.
        rescale: guidance rescale, 0 (off) to 1.

    Returns:
        float32 [S, videos, ...], the new state.

    Raises:
        ValueError: as the two parts.
    """
    return linear_step(state, guided_prediction(noise_preds, weights, rescale), matrix, noise)


def _std(prediction: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Unbiased standard deviation per video, [videos, 1, 1, ...]."""
    axes = tuple(range(1, prediction.ndim))
    return np.std(prediction, axis=axes, ddof=1, keepdims=True, dtype=np.float64)
