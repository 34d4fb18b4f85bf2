"""UniPC of order 2, https://arxiv.org/abs/2302.04867 (UniPC-2, B_2(h) = e^h - 1, data prediction).

Numbers follow diffusers' UniPCMultistepScheduler with its defaults: solver_order 2, solver_type "bh2",
predict_x0, lower_order_final, final_sigmas_type "zero", a corrector at every step but the first. With
rescale_betas_zero_snr the last abar is 2^-24, as there.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from .ddim import SchedulerConfig
from .noise_levels import alpha_and_spread, clean_weights, multistep_timesteps, sigma_grid
from .sampler import StepTable

_Weights = npt.NDArray[np.float64]


def unipc_table(config: SchedulerConfig, num_inference_steps: int) -> StepTable:
    """A run of UniPC: four state arrays, the sample, the corrected sample before, and the last two clean samples.

    Each step first corrects the sample it was given, with the model's new output, then predicts the next one. The
    U-Net is evaluated once a step, at the predicted sample.

    Raises:
        ValueError: a step count that is not possible, or epsilon prediction at zero SNR.
    """
    timesteps = multistep_timesteps(config, num_inference_steps)
    sigmas = sigma_grid(config, timesteps)
    sample, corrected_before, clean_before, clean_two_before, output, _ = np.eye(6)
    matrices, order = [], 0
    for step in range(num_inference_steps):
        p, q = clean_weights(config, *alpha_and_spread(sigmas[step]))
        clean = p * sample + q * output
        corrected = sample
        if step > 0:
            corrected = _correct(sigmas, step, order, corrected_before, clean_before, clean_two_before, clean)
        order = min(2, step + 1, num_inference_steps - step)
        predicted = _predict(sigmas, step, order, corrected, clean, clean_before)
        matrices.append([predicted, corrected, clean, clean_before])
    return StepTable(timesteps, np.array(matrices, np.float32), needs_noise=False)


def _predict(
    sigmas: _Weights, step: int, order: int, sample: _Weights, clean: _Weights, clean_before: _Weights
) -> _Weights:
    """UniP from level `step` to the next: of order 2 with the simplified weight 1/2 (the paper's remark after (10))."""
    change = np.zeros_like(sample)
    if order == 2:
        ratio = math.log(sigmas[step] / sigmas[step - 1]) / math.log(sigmas[step] / sigmas[step + 1])
        change = 0.5 * (clean_before - clean) / ratio
    return _advance(sigmas, step, sample, clean, change)


def _correct(
    sigmas: _Weights,
    step: int,
    order: int,
    sample: _Weights,
    clean: _Weights,
    clean_before: _Weights,
    clean_now: _Weights,
) -> _Weights:
    """UniC: the step to level `step` once more, now knowing the clean sample `clean_now` that was predicted there.

    Args:
        order: of the predictor that made that step.
        sample, clean: at level `step` - 1. clean_before: at level `step` - 2.
    """
    h = math.log(sigmas[step - 1] / sigmas[step])
    if order == 1:
        return _advance(sigmas, step - 1, sample, clean, 0.5 * (clean_now - clean))
    ratio = math.log(sigmas[step - 1] / sigmas[step - 2]) / h
    b_h = math.expm1(-h)
    phi_2 = b_h / -h - 1
    phi_3 = phi_2 / -h - 1 / 2
    weights = np.linalg.solve([[1.0, 1.0], [ratio, 1.0]], [phi_2 / b_h, 2 * phi_3 / b_h])
    change = weights[0] * (clean_before - clean) / ratio + weights[1] * (clean_now - clean)
    return _advance(sigmas, step - 1, sample, clean, change)


def _advance(sigmas: _Weights, step: int, sample: _Weights, clean: _Weights, change: _Weights) -> _Weights:
    """x_t = spread_t / spread_s x - alpha_t (e^-h - 1) (m + change), from level `step` to the next."""
    (_, spread), (next_alpha, next_spread) = (alpha_and_spread(sigma) for sigma in sigmas[step : step + 2])
    gain = next_alpha * (1 - sigmas[step + 1] / sigmas[step])
    return next_spread / spread * sample + gain * (clean + change)
