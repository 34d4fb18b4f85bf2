"""The schedulers by name, and those beside DDIM: DPM-Solver++, UniPC, Euler and consistency sampling as step tables.

Each takes its timesteps from the configuration's spacing, or as they are given: any strictly falling ones.

sigma = sqrt((1 - abar) / abar) is the noise level where the signal is not scaled (https://arxiv.org/abs/2206.00364);
in variance-preserving space the same sample is alpha x0 + spread e, alpha = 1 / sqrt(1 + sigma^2),
spread = sigma alpha. Numbers follow diffusers' schedulers with their defaults, ``final_sigmas_type="zero"`` among them
(the last level is 0, so the last step is of first order); with rescale_betas_zero_snr the last abar is 2^-24, as there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from .ddim import (
    SchedulerConfig,
    alphas_cumprod,
    check_epsilon,
    check_step_count,
    check_timesteps,
    ddim_table,
    ddim_timesteps,
)
from .sampler import StepTable

_Doubles = NDArray[np.float64]
_Timesteps = NDArray[np.int64]
_Number = TypeVar("_Number", float, _Doubles)

# Where the schedule ends in noise alone, diffusers puts this instead of 0, so that sigma stays finite.
_SMALLEST_ALPHA_CUMPROD = 2.0**-24
_KARRAS_RHO = 7.0
# The grid that consistency models were distilled on, and their boundary condition's numbers (section 4.2, appendix).
_ORIGINAL_STEPS = 50
_TIMESTEP_SCALING = 10.0
_SIGMA_DATA = 0.5


def step_table(
    name: str,
    config: SchedulerConfig,
    num_inference_steps: int,
    eta: float = 0.0,
    timesteps: Sequence[int] | None = None,
) -> StepTable:
    """A run of the named scheduler.

    Args:
        name: one of ``SCHEDULERS``; "ddim" is the published one.
        config: noise schedule, timestep spacing and prediction type, from the bundle.
        num_inference_steps: U-Net evaluations.
        eta: 0 (deterministic) to 1, for "ddim" alone.
        timesteps: `num_inference_steps` of them, highest first, instead of those of the spacing; the last step goes on
            to the clean sample.

    Raises:
        ValueError: an unknown name, eta for another scheduler, a step count or timesteps that are not possible, or
            epsilon prediction at zero SNR.
    """
    if name not in SCHEDULERS:
        raise ValueError(f"Unknown scheduler {name!r}: choose one of {', '.join(SCHEDULERS)}.")
    if eta != 0 and name != "ddim":
        raise ValueError(f"eta={eta} belongs to the ddim scheduler: set eta to 0, or scheduler to ddim.")
    check_step_count(config, num_inference_steps)
    if timesteps is not None:
        check_timesteps(config, num_inference_steps, timesteps)
        if name not in TAKES_TIMESTEPS:
            raise ValueError(
                f"Scheduler {name} has timesteps of its own: leave timesteps out, or choose one of "
                f"{', '.join(TAKES_TIMESTEPS)}."
            )
    given = None if timesteps is None else np.array(timesteps, np.int64)
    if name == "ddim":
        return ddim_table(config, num_inference_steps, eta, given)
    if name == "lcm":
        return _lcm(config, num_inference_steps)
    if name == "dpmpp_2m_karras":
        levels = _karras_levels(config, num_inference_steps)
    else:
        solver_timesteps = _SPACINGS.get(name, multistep_timesteps)
        levels = _levels(config, solver_timesteps(config, num_inference_steps) if given is None else given)
    check_epsilon(config, levels[0])
    return _SOLVERS[name](config, *levels)


def _dpmpp_2m(config: SchedulerConfig, timesteps: _Timesteps, sigmas: _Doubles) -> StepTable:
    """DPM-Solver++ (2M), https://arxiv.org/abs/2211.01095 algorithm 2: two state arrays, the sample and the clean
    sample predicted one step before.

    With sigma_s -> sigma_t, h = log(sigma_s / sigma_t), r = (the step before)'s h / h, and m, m' the clean samples
    predicted now and one step before:
    x_t = spread_t / spread_s x - alpha_t (exp(-h) - 1) (m + (m - m') / (2 r)), first and last step without m'.
    """
    steps = len(timesteps)
    sample, before, output, _ = np.eye(4)
    matrices = []
    for step in range(steps):
        clean = _clean(config, sigmas[step], sample, output)
        change = np.zeros_like(sample)
        if 0 < step < steps - 1:
            ratio = math.log(sigmas[step - 1] / sigmas[step]) / math.log(sigmas[step] / sigmas[step + 1])
            change = (clean - before) / (2 * ratio)
        matrices.append([_advance(sigmas, step, sample, clean, change), clean])
    return StepTable(timesteps, np.array(matrices, np.float32), needs_noise=False)


def _deis(config: SchedulerConfig, timesteps: _Timesteps, sigmas: _Doubles) -> StepTable:
    """DEIS of order 3, https://arxiv.org/abs/2204.13902 (tAB, polynomials in log rho): three state arrays, the sample
    and the noise predicted one and two steps before.

    In sigma space the flow is dX = e dsigma. The noise e is taken as the polynomial in log sigma through the last three
    predictions and integrated exactly; the first two steps have fewer, and the last one is of first order. diffusers
    ends at the schedule's lowest noise level; here the last step goes to the clean sample.
    """
    order, steps = 3, len(timesteps)
    sample, *before, output, _ = np.eye(order + 2)
    matrices = []
    for step in range(steps):
        (alpha, sigma_t), (next_alpha, _) = (_alpha_and_sigma_t(sigma) for sigma in sigmas[step : step + 2])
        noise = (sample - alpha * _clean(config, sigmas[step], sample, output)) / sigma_t
        known = [noise, *before][: 1 if step == steps - 1 else step + 1]
        # In units of this level: the integrals of log(s)^k ds from 1 to the next one are s times the polynomials below.
        nodes = [math.log(sigmas[step - n] / sigmas[step]) for n in range(len(known))]
        ratio = sigmas[step + 1] / sigmas[step]
        log = math.log(ratio) if ratio > 0 else 0.0
        integrals = [ratio - 1, ratio * (log - 1) + 1, ratio * (log**2 - 2 * log + 2) - 2][: len(known)]
        weights = np.linalg.solve(np.vander(nodes, increasing=True).T, integrals)
        moved = sample / alpha + sigmas[step] * (weights @ np.array(known))
        matrices.append([next_alpha * moved, noise, before[0]])
    return StepTable(timesteps, np.array(matrices, np.float32), needs_noise=False)


def _unipc(config: SchedulerConfig, timesteps: _Timesteps, sigmas: _Doubles) -> StepTable:
    """UniPC of order 2, https://arxiv.org/abs/2302.04867 (UniPC-2, B_2(h) = e^h - 1, data prediction): four state
    arrays, the sample, the corrected sample before, and the last two clean samples.

    Each step first corrects the sample it was given, with the model's new output, then predicts the next one. The
    U-Net is evaluated once a step, at the predicted sample.
    """
    steps = len(timesteps)
    sample, corrected_before, clean_before, clean_two_before, output, _ = np.eye(6)
    matrices, order = [], 0
    for step in range(steps):
        clean = _clean(config, sigmas[step], sample, output)
        corrected = sample
        if step > 0:
            # UniC: the step to this level once more, with the order of the predictor that made it.
            if order == 1:
                change = 0.5 * (clean - clean_before)
            else:
                h = math.log(sigmas[step - 1] / sigmas[step])
                ratio, b_h = math.log(sigmas[step - 1] / sigmas[step - 2]) / h, math.expm1(-h)
                phi_2 = b_h / -h - 1
                phi_3 = phi_2 / -h - 1 / 2
                first, second = np.linalg.solve([[1.0, 1.0], [ratio, 1.0]], [phi_2 / b_h, 2 * phi_3 / b_h])
                change = first * (clean_two_before - clean_before) / ratio + second * (clean - clean_before)
            corrected = _advance(sigmas, step - 1, corrected_before, clean_before, change)
        order = min(2, step + 1, steps - step)
        change = np.zeros_like(sample)
        if order == 2:  # UniP, with the simplified weight 1/2 (the paper's remark after (10))
            ratio = math.log(sigmas[step] / sigmas[step - 1]) / math.log(sigmas[step] / sigmas[step + 1])
            change = 0.5 * (clean_before - clean) / ratio
        matrices.append([_advance(sigmas, step, corrected, clean, change), corrected, clean, clean_before])
    return StepTable(timesteps, np.array(matrices, np.float32), needs_noise=False)


def _euler(config: SchedulerConfig, timesteps: _Timesteps, sigmas: _Doubles) -> StepTable:
    """Euler's method on the probability-flow ODE, https://arxiv.org/abs/2206.00364 algorithm 1 without churn, on DDIM's
    timesteps; one state array. In sigma space X = sqrt(1 + sigma^2) x and X_t = X + (X - x0) (sigma_t - sigma_s) /
    sigma_s.

    diffusers keeps the sample in sigma space. Two differences at the start: "linspace" timesteps are rounded, and the
    first sample is the initial latents for every spacing, where diffusers scales it by sigma / sqrt(1 + sigma^2) for
    "linspace" and "trailing". In exact arithmetic this is deterministic DDIM; it is there for checkpoints and
    comparisons that name it.
    """
    sample, output, _ = np.eye(3)
    matrices = []
    for sigma, next_sigma in itertools.pairwise(sigmas):
        unscaled = sample / _alpha_and_sigma_t(sigma)[0]
        derivative = (unscaled - _clean(config, sigma, sample, output)) / sigma
        matrices.append([_alpha_and_sigma_t(next_sigma)[0] * (unscaled + derivative * (next_sigma - sigma))])
    return StepTable(timesteps, np.array(matrices, np.float32), needs_noise=False)


def _lcm(config: SchedulerConfig, steps: int) -> StepTable:
    """Multistep sampling of latent consistency models, https://arxiv.org/abs/2310.04378 algorithm 3; one state array,
    and noise at every step where there is more than one.

    The model answers for the clean sample at once: denoised = c_skip x + c_out x0, x_next = sqrt(abar_next) denoised +
    sqrt(1 - abar_next) z; the last step is `denoised` itself. Timesteps come from the distillation grid (every 20th of
    1000 from 999 down), whatever the config's spacing and offset.
    """
    total = config.num_train_timesteps
    most = min(_ORIGINAL_STEPS, total)
    if not 1 <= steps <= most:
        raise ValueError(
            f"{steps} denoising steps are not possible with lcm: give a whole number from 1 to {most}, the steps that "
            "such models are distilled from (4 is usual)."
        )
    grid = np.arange(1, most + 1, dtype=np.int64) * (total // most) - 1
    timesteps = grid[::-1][np.floor(np.linspace(0, most, steps, endpoint=False)).astype(np.int64)]
    check_epsilon(config, timesteps)
    abar = alphas_cumprod(config).astype(np.float64)[timesteps]
    signal, sigma_t = np.sqrt(abar), np.sqrt(1 - abar)
    scaled = timesteps * _TIMESTEP_SCALING
    c_skip = _SIGMA_DATA**2 / (scaled**2 + _SIGMA_DATA**2)
    c_out = scaled / np.sqrt(scaled**2 + _SIGMA_DATA**2)
    p, q = _clean_weights(config, signal, sigma_t)
    next_signal, next_sigma_t = np.append(signal[1:], 1.0), np.append(sigma_t[1:], 0.0)
    rows = np.stack([next_signal * (c_skip + c_out * p), next_signal * c_out * q, next_sigma_t], axis=1)
    return StepTable(timesteps, rows[:, None].astype(np.float32), needs_noise=steps > 1)


def training_sigmas(config: SchedulerConfig) -> _Doubles:
    """sigma of every training timestep: float64 [num_train_timesteps], rising."""
    abar = alphas_cumprod(config).astype(np.float64)
    if config.rescale_betas_zero_snr:
        abar[-1] = _SMALLEST_ALPHA_CUMPROD
    return np.sqrt((1 - abar) / abar)


def _levels(config: SchedulerConfig, timesteps: _Timesteps) -> tuple[_Timesteps, _Doubles]:
    """Timesteps int64 [steps], and their sigmas with a 0 behind: float64 [steps + 1]."""
    return timesteps, np.append(training_sigmas(config)[timesteps], 0.0)


def multistep_timesteps(config: SchedulerConfig, steps: int) -> _Timesteps:
    """Timesteps of a multistep solver, highest first: int64 [steps].

    Unlike DDIM's, "leading" and "linspace" divide the range by steps + 1 and leave the lowest timestep out, because the
    last step goes to sigma 0, not to it.
    """
    total, distinct = config.num_train_timesteps, True
    if config.timestep_spacing == "linspace":
        timesteps = np.linspace(0, total - 1, steps + 1).round()[::-1][:-1].astype(np.int64)
        distinct = len(np.unique(timesteps)) == steps
    elif config.timestep_spacing == "trailing":
        timesteps = ddim_timesteps(config, steps)
    else:
        ratio = total // (steps + 1)
        timesteps = np.arange(steps, 0, -1, dtype=np.int64) * ratio + config.steps_offset
        distinct = ratio > 0
    if not distinct or timesteps[0] >= total:
        raise ValueError(
            f"{steps} denoising steps are too many for a multistep scheduler with {config.timestep_spacing} spacing "
            f"and steps_offset {config.steps_offset}: use fewer steps, or the ddim scheduler."
        )
    return timesteps


def exponential_timesteps(config: SchedulerConfig, steps: int) -> _Timesteps:
    """Timesteps even in log sigma over the whole schedule, highest first: int64 [steps]."""
    levels = np.log(training_sigmas(config))
    return whole_timesteps(config, np.linspace(levels[-1], levels[0], steps))


def whole_timesteps(config: SchedulerConfig, log_sigmas: _Doubles) -> _Timesteps:
    """The timesteps nearest to falling levels, each once: those that would be the same move apart, upwards."""
    levels, steps = np.log(training_sigmas(config)), len(log_sigmas)
    order = np.arange(steps)
    rising = np.interp(log_sigmas[::-1], levels, np.arange(len(levels))).round().astype(np.int64)
    apart = np.maximum.accumulate(rising - order) + order
    return np.minimum(apart, len(levels) - steps + order)[::-1]


def _karras_levels(config: SchedulerConfig, steps: int) -> tuple[_Timesteps, _Doubles]:
    """As :func:`_levels`, by equation (5) of https://arxiv.org/abs/2206.00364 over the whole schedule: levels
    equally spaced in sigma^(1/7).

    The U-Net gets the nearest timestep, found by interpolating log sigma; with many steps neighbours may share one.
    (diffusers rounds down for "squaredcos_cap_v2"; so does this.)
    """
    table = training_sigmas(config)
    low, high = table[0] ** (1 / _KARRAS_RHO), table[-1] ** (1 / _KARRAS_RHO)
    sigmas = (high + np.linspace(0, 1, steps) * (low - high)) ** _KARRAS_RHO
    positions = np.interp(np.log(sigmas), np.log(table), np.arange(len(table)))
    timesteps = (positions if config.beta_schedule == "squaredcos_cap_v2" else positions.round()).astype(np.int64)
    return timesteps, np.append(sigmas, 0.0)


def _advance(sigmas: _Doubles, step: int, sample: _Doubles, clean: _Doubles, change: _Doubles) -> _Doubles:
    """x_t = spread_t / spread_s x - alpha_t (e^-h - 1) (m + change), from level `step` to the next."""
    (_, sigma_t), (next_alpha, next_sigma_t) = (_alpha_and_sigma_t(sigma) for sigma in sigmas[step : step + 2])
    gain = next_alpha * (1 - sigmas[step + 1] / sigmas[step])
    return next_sigma_t / sigma_t * sample + gain * (clean + change)


def _alpha_and_sigma_t(sigma: float) -> tuple[float, float]:
    alpha = 1 / (1 + sigma**2) ** 0.5
    return alpha, sigma * alpha


def _clean(config: SchedulerConfig, sigma: float, sample: _Doubles, output: _Doubles) -> _Doubles:
    """x0 at this noise level, as weights of the sample and of the model's output."""
    p, q = _clean_weights(config, *_alpha_and_sigma_t(sigma))
    return p * sample + q * output


def _clean_weights(config: SchedulerConfig, alpha: _Number, sigma_t: _Number) -> tuple[_Number, _Number]:
    """(p, q) of x0 = p x + q e, for x = alpha x0 + spread noise and e in the form that the config names."""
    if config.prediction_type == "epsilon":
        return 1 / alpha, -sigma_t / alpha
    if config.prediction_type == "sample":
        return 0 * alpha, 0 * alpha + 1
    return alpha, -sigma_t


_SOLVERS: dict[str, Callable[[SchedulerConfig, _Timesteps, _Doubles], StepTable]] = {
    "dpmpp_2m": _dpmpp_2m,
    "dpmpp_2m_karras": _dpmpp_2m,
    "deis": _deis,
    "deis_exponential": _deis,
    "unipc": _unipc,
    "euler": _euler,
}
_SPACINGS = {"euler": ddim_timesteps, "deis_exponential": exponential_timesteps}
"""Of those that have other timesteps than :func:`multistep_timesteps`."""
SCHEDULERS = ("ddim", *_SOLVERS, "lcm")
TAKES_TIMESTEPS = ("ddim", "dpmpp_2m", "deis", "unipc", "euler")
"""Those of which a call may give the timesteps."""
