"""DDIM (https://arxiv.org/abs/2010.02502) as published: linear betas, leading timesteps, offset 1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import UserError


@dataclass(frozen=True)
class SchedulerOptions:
    """Noise schedule and step spacing; the defaults are the published ones."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "linear"  # or "scaled_linear"
    timestep_spacing: str = "leading"  # or "trailing", "linspace"
    steps_offset: int = 1
    prediction_type: str = "epsilon"  # or "v_prediction", "sample"
    rescale_betas_zero_snr: bool = False  # https://arxiv.org/abs/2305.08891
    set_alpha_to_one: bool = True

    def __post_init__(self) -> None:
        allowed = {
            "beta_schedule": ("linear", "scaled_linear"),
            "timestep_spacing": ("leading", "trailing", "linspace"),
            "prediction_type": ("epsilon", "v_prediction", "sample"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise UserError(f"{name} must be one of {', '.join(values)}, not {getattr(self, name)!r}.")


class DDIMScheduler:
    """Timesteps and one deterministic or stochastic step, in float32 coefficients."""

    def __init__(self, options: SchedulerOptions, num_inference_steps: int) -> None:
        if not 1 <= num_inference_steps <= options.num_train_timesteps:
            raise UserError(
                f"num_inference_steps must be 1 to {options.num_train_timesteps}, not {num_inference_steps}."
            )
        self.options = options
        self.stride = options.num_train_timesteps // num_inference_steps
        self.timesteps = spaced_timesteps(options, num_inference_steps)
        self.alphas_cumprod = alphas_cumprod(options)
        self.final_alpha_cumprod = torch.tensor(1.0) if options.set_alpha_to_one else self.alphas_cumprod[0]

    def add_noise(self, latents: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """sqrt(abar) * latents + sqrt(1 - abar) * noise, shapes alike."""
        alpha = self.alphas_cumprod[timestep].to(latents.dtype)
        return alpha**0.5 * latents + (1 - alpha) ** 0.5 * noise

    def step(
        self, prediction: Tensor, timestep: int, x: Tensor, *, eta: float = 0.0, noise: Tensor | None = None
    ) -> Tensor:
        """From x at `timestep` to the previous one. `noise`, shaped like x, is needed when eta > 0."""
        previous = timestep - self.stride
        alpha = self.alphas_cumprod[timestep]
        alpha_previous = self.alphas_cumprod[previous] if previous >= 0 else self.final_alpha_cumprod
        beta, beta_previous = 1 - alpha, 1 - alpha_previous
        if self.options.prediction_type == "epsilon":
            clean, epsilon = (x - beta**0.5 * prediction) / alpha**0.5, prediction
        elif self.options.prediction_type == "v_prediction":
            clean = alpha**0.5 * x - beta**0.5 * prediction
            epsilon = alpha**0.5 * prediction + beta**0.5 * x
        else:
            clean, epsilon = prediction, (x - alpha**0.5 * prediction) / beta**0.5
        std = eta * ((beta_previous / beta) * (1 - alpha / alpha_previous)) ** 0.5
        x = alpha_previous**0.5 * clean + (1 - alpha_previous - std**2) ** 0.5 * epsilon
        if eta > 0:
            if noise is None:
                raise UserError("A step with eta > 0 needs noise shaped like the latents.")
            x = x + std * noise
        return x


def spaced_timesteps(options: SchedulerOptions, count: int) -> list[int]:
    """The `count` timesteps from noisy to clean."""
    total = options.num_train_timesteps
    if options.timestep_spacing == "leading":
        return [i * (total // count) + options.steps_offset for i in reversed(range(count))]
    if options.timestep_spacing == "trailing":
        return [round(total - i * (total / count)) - 1 for i in range(count)]
    spacing = (total - 1) / (count - 1) if count > 1 else 0.0
    return [round(i * spacing) for i in reversed(range(count))]


def alphas_cumprod(options: SchedulerOptions) -> Tensor:
    """(num_train_timesteps,) float32, cumulative products of 1 - beta."""
    start, end, total = options.beta_start, options.beta_end, options.num_train_timesteps
    if options.beta_schedule == "linear":
        betas = torch.linspace(start, end, total, dtype=torch.float32)
    else:
        betas = torch.linspace(start**0.5, end**0.5, total, dtype=torch.float32) ** 2
    if options.rescale_betas_zero_snr:
        betas = _zero_terminal_snr(betas)
    return torch.cumprod(1.0 - betas, dim=0)


def _zero_terminal_snr(betas: Tensor) -> Tensor:
    root = torch.cumprod(1.0 - betas, dim=0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    cumulative = ((root - last) * (first / (first - last))) ** 2
    return 1 - torch.cat((cumulative[:1], cumulative[1:] / cumulative[:-1]))
