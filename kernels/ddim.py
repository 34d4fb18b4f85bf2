"""The noise schedule, and the DDIM scheduler as a step table.

DDIM: https://arxiv.org/abs/2010.02502. Timestep spacings, v-prediction with zero terminal SNR:
https://arxiv.org/abs/2305.08891. Numbers follow diffusers' DDIMScheduler in float32 on the CPU.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import FloatArray
from .sampler import StepTable

# The schedule is a table with a number for each of them; published models have 1000.
MAX_TRAIN_TIMESTEPS = 100_000

_CHOICES = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "timestep_spacing": ("leading", "trailing", "linspace"),
    "prediction_type": ("epsilon", "v_prediction", "sample"),
}
# diffusers' keys that have an effect unless they hold this value.
_MUST_BE = {"clip_sample": False, "thresholding": False, "trained_betas": None}
# diffusers' keys that have no effect once those hold.
_WITHOUT_EFFECT = {"clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value", "skip_prk_steps"}


@dataclass(frozen=True)
class SchedulerConfig:
    """What defines the noise schedule and the timesteps. Defaults are ConsistI2V's; names are diffusers'.

    Raises:
        ValueError: a value that is not allowed; the message names it.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "linear"
    steps_offset: int = 1
    timestep_spacing: str = "leading"
    prediction_type: str = "epsilon"
    rescale_betas_zero_snr: bool = False
    set_alpha_to_one: bool = True

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not known: choose {', '.join(allowed)}.")
        for name, (least, most) in {"num_train_timesteps": (2, MAX_TRAIN_TIMESTEPS), "steps_offset": (0, 1000)}.items():
            value = getattr(self, name)
            self._demand(name, type(value) is int and least <= value <= most, f"a whole number from {least} to {most}")
        for name in ("rescale_betas_zero_snr", "set_alpha_to_one"):
            self._demand(name, isinstance(getattr(self, name), bool), "true or false")
        for name in ("beta_start", "beta_end"):
            value = getattr(self, name)
            self._demand(name, isinstance(value, int | float) and 0 < value < 1, "a number between 0 and 1")

    def _demand(self, name: str, holds: bool, wanted: str) -> None:
        if not holds:
            raise ValueError(f"{name}={getattr(self, name)!r} is not allowed: give {wanted}.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SchedulerConfig:
        """Read a configuration, diffusers' own ``scheduler_config.json`` included.

        diffusers' bookkeeping (keys that begin with "_") and options that are switched off are accepted;
        anything that would change results and is not implemented here is refused.

        Raises:
            ValueError: an unknown key, an option that is not supported, or a value that is not allowed.
        """
        known = {field.name for field in fields(cls)}
        for key, value in values.items():
            if key in _MUST_BE:
                if value is not _MUST_BE[key]:
                    raise ValueError(
                        f"Scheduler option {key}={value!r} is not supported: set it to {_MUST_BE[key]}, "
                        f"as ConsistI2V does."
                    )
            elif key not in known and key not in _WITHOUT_EFFECT and not key.startswith("_"):
                raise ValueError(
                    f"Unknown scheduler option {key!r}: remove it, or use one of {', '.join(sorted(known))}."
                )
        return cls(**{key: value for key, value in values.items() if key in known})


@lru_cache(maxsize=8)
def alphas_cumprod(config: SchedulerConfig) -> FloatArray:
    """abar_t, the product of (1 - beta) up to timestep t: float32 [num_train_timesteps], cached and read-only.

    float32 and in torch's order of operations, because the published runs use these very roundings.
    """
    # torch accumulates float32 products in float64 and rounds each one.
    result = np.cumprod(np.float32(1) - _betas(config), dtype=np.float64).astype(np.float32)
    if config.rescale_betas_zero_snr:
        # Algorithm 1 of https://arxiv.org/abs/2305.08891: sqrt(abar) shifted to end at 0, scaled to begin as it did.
        root = np.sqrt(result)
        abar = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
        betas = np.float32(1) - np.concatenate([abar[:1], abar[1:] / abar[:-1]])
        result = np.cumprod(np.float32(1) - betas, dtype=np.float64).astype(np.float32)
    result.flags.writeable = False
    return result


def check_step_count(config: SchedulerConfig, num_inference_steps: int) -> None:
    """Refuse, with a ValueError, a step count outside 1..num_train_timesteps."""
    total = config.num_train_timesteps
    if not 1 <= num_inference_steps <= total:
        raise ValueError(
            f"{num_inference_steps} denoising steps are not possible: give a whole number from 1 to {total}."
        )


def check_timesteps(config: SchedulerConfig, steps: int, timesteps: Sequence[int]) -> None:
    """Refuse, with a ValueError, timesteps that are not `steps` strictly falling ones of the noise schedule."""
    total = config.num_train_timesteps
    falling = all(later < earlier for earlier, later in itertools.pairwise(timesteps))
    if not falling or not all(0 <= timestep < total for timestep in timesteps):
        raise ValueError(f"Timesteps are not possible: give each once, highest first, from {total - 1} to 0.")
    if len(timesteps) != steps:
        raise ValueError(f"{len(timesteps)} timesteps do not fit {steps} denoising steps: give one for each step.")


def check_epsilon(config: SchedulerConfig, timesteps: NDArray[np.int64]) -> None:
    """Refuse epsilon prediction at a timestep of zero SNR, where it says nothing about the clean sample: ValueError."""
    if config.prediction_type == "epsilon" and not alphas_cumprod(config)[timesteps].all():
        raise ValueError(
            "Epsilon prediction cannot start at zero SNR, where the sample is noise alone: use "
            'prediction_type "v_prediction", or set rescale_betas_zero_snr to false.'
        )


def ddim_timesteps(config: SchedulerConfig, num_inference_steps: int) -> NDArray[np.int64]:
    """Timesteps of a run, highest first: int64 [num_inference_steps].

    Raises:
        ValueError: a step count outside 1..num_train_timesteps, or one that reaches past the last training timestep.
    """
    check_step_count(config, num_inference_steps)
    total, steps = config.num_train_timesteps, num_inference_steps
    if config.timestep_spacing == "linspace":
        return np.linspace(0, total - 1, steps).round()[::-1].astype(np.int64)
    if config.timestep_spacing == "trailing":
        # arange accumulates a rounding error that, for some counts, makes one element too many (timestep -1).
        return np.round(np.arange(total, 0, -total / steps)[:steps]).astype(np.int64) - 1
    timesteps = np.arange(steps, dtype=np.int64)[::-1] * (total // steps) + config.steps_offset
    if timesteps[0] >= total:
        raise ValueError(
            f"{steps} denoising steps with steps_offset {config.steps_offset} would begin at timestep {timesteps[0]}, "
            f"but the last one is {total - 1}: use fewer steps or a smaller offset."
        )
    return timesteps


def add_noise(original: FloatArray, noise: FloatArray, alpha_cumprod: float) -> FloatArray:
    """Diffuse clean latents: sqrt(abar) original + sqrt(1 - abar) noise, float32 of shapes that broadcast."""
    abar = np.float32(alpha_cumprod)
    return np.sqrt(abar) * original + np.sqrt(np.float32(1) - abar) * noise


def ddim_table(
    config: SchedulerConfig, num_inference_steps: int, eta: float = 0.0, timesteps: NDArray[np.int64] | None = None
) -> StepTable:
    """Fold DDIM's equations (12) and (16), without clipping, into three numbers per step; one state array.

    With abar_p = abar at t - num_train_timesteps // steps, or at the next of `timesteps` that are given (below 0 and
    behind the last one, the final abar),
    sigma = eta sqrt((1 - abar_p) / (1 - abar_t) (1 - abar_t / abar_p)), and x0, e the clean sample and noise that the
    prediction type implies: x_prev = sqrt(abar_p) x0 + sqrt(1 - abar_p - sigma^2) e + sigma z.
    Computed in float64 from the float32 schedule, then rounded once. Above eta 0 noise is drawn at every step.

    Raises:
        ValueError: eta outside 0..1, a step count that is not possible, or epsilon prediction at zero SNR.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta} is not allowed: give a number from 0 (deterministic) to 1 (DDPM).")
    if timesteps is None:
        timesteps = ddim_timesteps(config, num_inference_steps)
        previous = timesteps - config.num_train_timesteps // num_inference_steps
    else:
        previous = np.append(timesteps[1:], -1)
    schedule = alphas_cumprod(config).astype(np.float64)
    abar = schedule[timesteps]
    check_epsilon(config, timesteps)
    final = 1.0 if config.set_alpha_to_one else schedule[0]
    abar_prev = np.where(previous >= 0, schedule[np.maximum(previous, 0)], final)
    sigma = eta * np.sqrt((1 - abar_prev) / (1 - abar) * (1 - abar / abar_prev))
    to_clean = np.sqrt(abar_prev)
    # At eta 1 and zero SNR the difference is 0 and may round below it.
    to_noise = np.sqrt(np.maximum(1 - abar_prev - sigma**2, 0))

    signal, sigma_t = np.sqrt(abar), np.sqrt(1 - abar)
    if config.prediction_type == "epsilon":  # x0 = (x - spread e) / signal
        sample_scale = to_clean / signal
        output_scale = to_noise - to_clean * sigma_t / signal
    elif config.prediction_type == "sample":  # e = (x - signal x0) / spread
        sample_scale = to_noise / sigma_t
        output_scale = to_clean - to_noise * signal / sigma_t
    else:  # x0 = signal x - spread v; e = signal v + spread x
        sample_scale = to_clean * signal + to_noise * sigma_t
        output_scale = to_noise * signal - to_clean * sigma_t
    rows = np.stack([sample_scale, output_scale, sigma], axis=1)
    return StepTable(timesteps, rows[:, None].astype(np.float32), needs_noise=eta > 0)


def _betas(config: SchedulerConfig) -> FloatArray:
    steps = config.num_train_timesteps
    if config.beta_schedule == "linear":
        return _torch_linspace(config.beta_start, config.beta_end, steps)
    if config.beta_schedule == "scaled_linear":
        return _torch_linspace(config.beta_start**0.5, config.beta_end**0.5, steps) ** 2
    # https://arxiv.org/abs/2102.09672 equation (17)
    abar = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
    return np.array([min(1 - abar[i + 1] / abar[i], 0.999) for i in range(steps)], np.float32)


def _torch_linspace(start: float, end: float, steps: int) -> FloatArray:
    """torch.linspace in float32, bit for bit: from both ends to the middle, with fused multiply-add.

    A float32 times a small whole number is exact in float64, so only the addition and the cast round.
    """
    first, last = np.float32(start), np.float32(end)
    step = np.float64((last - first) / np.float32(steps - 1))
    i = np.arange(steps)
    rising, falling = np.float64(first) + step * i, np.float64(last) - step * (steps - 1 - i)
    return np.where(i < steps // 2, rising, falling).astype(np.float32)
