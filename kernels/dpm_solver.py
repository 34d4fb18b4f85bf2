"""DPM-Solver++ (2M), https://arxiv.org/abs/2211.01095 algorithm 2; with Karras' noise levels
https://arxiv.org/abs/2206.00364 equation (5).

Numbers follow diffusers' DPMSolverMultistepScheduler with its defaults: solver_order 2, algorithm_type "dpmsolver++",
solver_type "midpoint", final_sigmas_type "zero" (so the last step is of first order, whatever lower_order_final says),
and use_karras_sigmas for the second form. With rescale_betas_zero_snr the last abar is 2^-24, as there.
"""

from __future__ import annotations

import math

import numpy as np

from .ddim import SchedulerConfig
from .noise_levels import alpha_and_spread, clean_weights, karras_grid, multistep_timesteps, sigma_grid
from .sampler import StepTable


def dpmpp_2m_table(config: SchedulerConfig, num_inference_steps: int, karras: bool = False) -> StepTable:
    """A run of DPM-Solver++ 2M: two state arrays, the sample and the clean sample predicted one step before.

    With sigma_s -> sigma_t, h = log(sigma_s / sigma_t), r = (the step before)'s h / h, and m, m' the clean samples
    predicted now and one step before:
    x_t = spread_t / spread_s x - alpha_t (exp(-h) - 1) (m + (m - m') / (2 r)), first and last step without m'.

    Args:
        config: noise schedule and prediction type.
        num_inference_steps: U-Net evaluations.
        karras: Karras' noise levels instead of the config's timestep spacing.

    Raises:
        ValueError: a step count that is not possible, or epsilon prediction at zero SNR.
    """
    if karras:
        timesteps, sigmas = karras_grid(config, num_inference_steps)
    else:
        timesteps = multistep_timesteps(config, num_inference_steps)
        sigmas = sigma_grid(config, timesteps)
    sample, before, output, _ = np.eye(4)
    matrices = []
    for step in range(num_inference_steps):
        (alpha, spread), (next_alpha, next_spread) = (alpha_and_spread(sigma) for sigma in sigmas[step : step + 2])
        p, q = clean_weights(config, alpha, spread)
        clean = p * sample + q * output
        direction = clean
        if 0 < step < num_inference_steps - 1:
            ratio = math.log(sigmas[step - 1] / sigmas[step]) / math.log(sigmas[step] / sigmas[step + 1])
            direction = clean + (clean - before) / (2 * ratio)
        gain = next_alpha * (1 - sigmas[step + 1] / sigmas[step])
        matrices.append([next_spread / spread * sample + gain * direction, clean])
    return StepTable(timesteps, np.array(matrices, np.float32), needs_noise=False)
