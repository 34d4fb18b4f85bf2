"""One training example of ConsistI2V (arXiv:2402.04324): noise, null conditions, loss weight."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ....kernels.ddim import SchedulerConfig, alphas_cumprod
from ....kernels.noise import base_noise_shape, mix_noise

NOISE_KIND, NOISE_ALPHA = "pyoco_mixed", 1.0
TEXT_NULL, IMAGE_NULL = 0.1, 0.1
_MAX_WEIGHT = 10.0


@dataclass
class NoisyBatch:
    """What the U-Net is given and what it must predict."""

    sample: Tensor
    """[b, c, f-1, h, w] noisy frames 1.."""
    first_frame: Tensor
    """[b, c, 1, h, w]: clean, or noisy where the image is dropped."""
    noise: Tensor
    """[b, c, f-1, h, w], the target."""
    timesteps: Tensor
    """int64 [b]."""
    weights: Tensor
    """float [b], mean 1 over all timesteps."""
    text_dropped: list[bool]


def schedule() -> Tensor:
    """The published schedule's cumulative alphas, float32 [1000]."""
    return torch.from_numpy(alphas_cumprod(SchedulerConfig()).copy())


def loss_weights(abar: Tensor) -> Tensor:
    """Weight of the squared noise error per timestep: 1/SNR = (1 - abar) / abar, at most 10, scaled to mean 1.

    Uncapped this is the squared error of the clean latents that the noise stands for. The plain loss hardly sees the
    timesteps at which motion is decided, since the target is nearly the input there, and sees most of all the clearest
    ones, where no model knows the little noise. The cap keeps the noisiest timesteps from drowning the rest.
    """
    weights = ((1 - abar) / abar).clamp(max=_MAX_WEIGHT)
    return weights / weights.mean()


def make_noise(shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
    """The published training noise: float32 [b, c, f, h, w], half of its variance shared by all frames."""
    base_shape = base_noise_shape(NOISE_KIND, shape)
    base = None if base_shape is None else rng.standard_normal(base_shape, dtype=np.float32)
    return torch.from_numpy(mix_noise(NOISE_KIND, base, rng.standard_normal(shape, dtype=np.float32), NOISE_ALPHA))


def noisy_batch(clips: Tensor, abar: Tensor, rng: np.random.Generator, device: str = "cpu") -> NoisyBatch:
    """Noise clean clips for one step.

    Args:
        clips: float [b, f, c, h, w] scaled latents.
        abar: of :func:`schedule`.
        rng: draws timesteps, noise, and which conditions are dropped.
    """
    clean = clips.transpose(1, 2)
    batch = clean.shape[0]
    timesteps = torch.from_numpy(rng.integers(0, len(abar), batch))
    noise = make_noise(tuple(clean.shape), rng)
    level = abar[timesteps].view(-1, 1, 1, 1, 1)
    noisy = level.sqrt() * clean + (1 - level).sqrt() * noise
    image_dropped = torch.from_numpy(rng.random(batch) < IMAGE_NULL).view(-1, 1, 1, 1, 1)
    first_frame = torch.where(image_dropped, noisy[:, :, :1], clean[:, :, :1])
    text_dropped = [bool(drop) for drop in rng.random(batch) < TEXT_NULL]
    return NoisyBatch(
        noisy[:, :, 1:].to(device),
        first_frame.to(device),
        noise[:, :, 1:].to(device),
        timesteps.to(device),
        loss_weights(abar)[timesteps].to(device),
        text_dropped,
    )
