"""Euler's method on the probability-flow ODE, https://arxiv.org/abs/2206.00364 algorithm 1 (without churn).

Numbers follow diffusers' EulerDiscreteScheduler (interpolation_type "linear", final_sigmas_type "zero"), with the
sample kept in variance-preserving space: theirs is this one times sqrt(1 + sigma^2), and what ``scale_model_input``
gives the U-Net is this one itself. Two differences, both at the start: "linspace" timesteps are rounded to whole
numbers, and the first sample is the initial latents for every spacing, where diffusers scales it by
sigma / sqrt(1 + sigma^2) for "linspace" and "trailing". With rescale_betas_zero_snr the last abar is 2^-24, as there.

In exact arithmetic an Euler step in sigma is a deterministic DDIM step between the same noise levels, so on the grid
of DDIM this differs from it by rounding alone; it is there for checkpoints and comparisons that name it.
"""

from __future__ import annotations

import itertools

import numpy as np

from .ddim import SchedulerConfig, check_epsilon, ddim_timesteps
from .noise_levels import alpha_and_spread, clean_weights, sigma_grid
from .sampler import StepTable


def euler_table(config: SchedulerConfig, num_inference_steps: int) -> StepTable:
    """A run of Euler steps on DDIM's timesteps, the last one to sigma 0; one state array.

    In sigma space X = sqrt(1 + sigma^2) x and X_t = X + (X - x0) (sigma_t - sigma_s) / sigma_s.

    Raises:
        ValueError: a step count that is not possible, or epsilon prediction at zero SNR.
    """
    timesteps = ddim_timesteps(config, num_inference_steps)
    check_epsilon(config, timesteps)
    sigmas = sigma_grid(config, timesteps)
    sample, output, _ = np.eye(3)
    matrices = []
    for sigma, next_sigma in itertools.pairwise(sigmas):
        (alpha, spread), (next_alpha, _) = alpha_and_spread(sigma), alpha_and_spread(next_sigma)
        p, q = clean_weights(config, alpha, spread)
        unscaled = sample / alpha
        derivative = (unscaled - (p * sample + q * output)) / sigma
        matrices.append([next_alpha * (unscaled + derivative * (next_sigma - sigma))])
    return StepTable(timesteps, np.array(matrices, np.float32), needs_noise=False)
