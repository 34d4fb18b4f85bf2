"""Multistep sampling of latent consistency models, https://arxiv.org/abs/2310.04378 algorithm 3.

For distilled checkpoints: the model answers for the clean sample at once, and fresh noise takes it to the next level.
Numbers follow diffusers' LCMScheduler with its defaults: original_inference_steps 50, timestep_scaling 10,
sigma_data 0.5, no clipping.
"""

from __future__ import annotations

import numpy as np

from .ddim import SchedulerConfig, alphas_cumprod, check_epsilon
from .noise_levels import clean_weights
from .sampler import StepTable

# The grid the models were distilled on, and the boundary condition's numbers (section 4.2 and appendix of the paper).
ORIGINAL_STEPS = 50
_TIMESTEP_SCALING = 10.0
_SIGMA_DATA = 0.5


def lcm_table(config: SchedulerConfig, num_inference_steps: int) -> StepTable:
    """A run of consistency sampling; one state array, and noise at every step where there is more than one.

    denoised = c_skip x + c_out x0, x_next = sqrt(abar_next) denoised + sqrt(1 - abar_next) z; the last step is
    `denoised` itself. Timesteps come from the distillation grid (every 20th of 1000 from 999 down), whatever the
    config's spacing and offset.

    Raises:
        ValueError: more steps than the distillation grid has, or epsilon prediction at zero SNR.
    """
    total = config.num_train_timesteps
    grid = np.arange(1, min(ORIGINAL_STEPS, total) + 1, dtype=np.int64) * (total // min(ORIGINAL_STEPS, total)) - 1
    if not 1 <= num_inference_steps <= len(grid):
        raise ValueError(
            f"{num_inference_steps} denoising steps are not possible with lcm: give a whole number from 1 to "
            f"{len(grid)}, the steps that such models are distilled from (4 is usual)."
        )
    indices = np.floor(np.linspace(0, len(grid), num_inference_steps, endpoint=False)).astype(np.int64)
    timesteps = grid[::-1][indices]
    check_epsilon(config, timesteps)
    abar = alphas_cumprod(config).astype(np.float64)[timesteps]
    signal, spread = np.sqrt(abar), np.sqrt(1 - abar)

    scaled = timesteps * _TIMESTEP_SCALING
    c_skip = _SIGMA_DATA**2 / (scaled**2 + _SIGMA_DATA**2)
    c_out = scaled / np.sqrt(scaled**2 + _SIGMA_DATA**2)
    p, q = clean_weights(config, signal, spread)
    next_signal, next_spread = np.append(signal[1:], 1.0), np.append(spread[1:], 0.0)
    rows = np.stack([next_signal * (c_skip + c_out * p), next_signal * c_out * q, next_spread], axis=1)
    return StepTable(timesteps, rows[:, None].astype(np.float32), needs_noise=num_inference_steps > 1)
