"""The noise levels that the multistep solvers and Euler step through, from the training schedule.

sigma = sqrt((1 - abar) / abar) is the noise level where the signal is not scaled (https://arxiv.org/abs/2206.00364);
in variance-preserving space the same sample is alpha x0 + spread e, alpha = 1 / sqrt(1 + sigma^2),
spread = sigma alpha. Grids follow diffusers' DPMSolverMultistepScheduler and EulerDiscreteScheduler with
``final_sigmas_type="zero"`` (their default): the last level is 0.
"""

from __future__ import annotations

from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from .ddim import SchedulerConfig, alphas_cumprod, check_epsilon, check_step_count

DoubleArray: TypeAlias = npt.NDArray[np.float64]
Timesteps: TypeAlias = npt.NDArray[np.int64]
_Number = TypeVar("_Number", float, DoubleArray)

# Where the schedule ends in noise alone, diffusers puts this instead of 0, so that sigma stays finite.
_SMALLEST_ALPHA_CUMPROD = 2.0**-24
_KARRAS_RHO = 7.0


def training_sigmas(config: SchedulerConfig) -> DoubleArray:
    """sigma of every training timestep: float64 [num_train_timesteps], rising."""
    abar = alphas_cumprod(config).astype(np.float64)
    if config.rescale_betas_zero_snr:
        abar[-1] = _SMALLEST_ALPHA_CUMPROD
    return np.sqrt((1 - abar) / abar)


def multistep_timesteps(config: SchedulerConfig, steps: int) -> Timesteps:
    """Timesteps of a multistep solver, highest first: int64 [steps].

    Unlike DDIM's, "leading" and "linspace" divide the range by steps + 1 and leave the lowest timestep out, because the
    last step goes to sigma 0, not to it.

    Raises:
        ValueError: a step count that is not possible.
    """
    check_step_count(config, steps)
    total = config.num_train_timesteps
    if config.timestep_spacing == "linspace":
        timesteps = np.linspace(0, total - 1, steps + 1).round()[::-1][:-1].astype(np.int64)
        distinct = len(np.unique(timesteps)) == steps
    elif config.timestep_spacing == "trailing":
        timesteps = np.round(np.arange(total, 0, -total / steps)[:steps]).astype(np.int64) - 1
        distinct = True
    else:
        ratio = total // (steps + 1)
        timesteps = np.arange(steps, 0, -1, dtype=np.int64) * ratio + config.steps_offset
        distinct = ratio > 0
    if not distinct or timesteps[0] >= total:
        raise ValueError(
            f"{steps} denoising steps are too many for a multistep scheduler with {config.timestep_spacing} spacing "
            f"and steps_offset {config.steps_offset}: use fewer steps, or the ddim scheduler."
        )
    check_epsilon(config, timesteps)
    return timesteps


def sigma_grid(config: SchedulerConfig, timesteps: Timesteps) -> DoubleArray:
    """sigma at each timestep, and 0 behind the last: float64 [steps + 1]."""
    return np.append(training_sigmas(config)[timesteps], 0.0)


def karras_grid(config: SchedulerConfig, steps: int) -> tuple[Timesteps, DoubleArray]:
    """Timesteps and sigmas of equation (5) of https://arxiv.org/abs/2206.00364 (rho 7) over the whole schedule.

    Levels are equally spaced in sigma^(1/7). The U-Net is told the nearest timestep, found by interpolating log sigma;
    with many steps neighbours may share one. (diffusers rounds down for "squaredcos_cap_v2"; so does this.)

    Returns:
        int64 [steps] and float64 [steps + 1], the last sigma 0.

    Raises:
        ValueError: a step count that is not possible.
    """
    check_step_count(config, steps)
    table = training_sigmas(config)
    low, high = table[0] ** (1 / _KARRAS_RHO), table[-1] ** (1 / _KARRAS_RHO)
    sigmas = (high + np.linspace(0, 1, steps) * (low - high)) ** _KARRAS_RHO
    positions = np.interp(np.log(sigmas), np.log(table), np.arange(len(table)))
    rounded = positions if config.beta_schedule == "squaredcos_cap_v2" else positions.round()
    timesteps = rounded.astype(np.int64)
    check_epsilon(config, timesteps)
    return timesteps, np.append(sigmas, 0.0)


def alpha_and_spread(sigma: float) -> tuple[float, float]:
    """Scale of the clean sample and of the noise in variance-preserving space at this noise level."""
    alpha = 1 / (1 + sigma**2) ** 0.5
    return alpha, sigma * alpha


def clean_weights(config: SchedulerConfig, alpha: _Number, spread: _Number) -> tuple[_Number, _Number]:
    """(p, q) of x0 = p x + q e, for the sample x = alpha x0 + spread noise and the model's output e in the form that
    the config names. Numbers, or arrays of them.
    """
    if config.prediction_type == "epsilon":
        return 1 / alpha, -spread / alpha
    if config.prediction_type == "sample":
        return 0 * alpha, 0 * alpha + 1
    return alpha, -spread
