"""The denoising loop: Algorithm of ConsistI2V (arXiv:2402.04324) as published, on plain arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..kernels.ddim import DDIMCoefficients, ddim_step
from ..kernels.frame_init import frame_init
from ..kernels.guidance import GuidanceMode, combine_guidance

Latents = NDArray[np.float32]


class NoisePredictor(Protocol):
    """The U-Net as the loop sees it: every guidance branch of every video at once."""

    def start(self, first_frames: Latents) -> None:
        """first_frames [branches, videos, c, 1, h, w]: what each branch sees as frame 0, for all steps to come."""

    def predict(self, sample: Latents, timestep: int) -> Latents:
        """sample [videos, c, f-1, h, w] -> [branches, videos, c, f-1, h, w]."""


@dataclass(frozen=True)
class Guidance:
    """How the branches of a step are combined; see :func:`combine_guidance`."""

    mode: GuidanceMode
    scale_txt: float
    scale_img: float
    rescale: float = 0.0


@dataclass(frozen=True)
class FrameInitPlan:
    """FrameInit's noise level as a cumulative alpha, and its low-pass mask."""

    alpha_cumprod: float
    mask: Latents


def denoise_clip(
    unet: NoisePredictor,
    first_frame: Latents,
    static_video: Latents,
    noise: Latents,
    *,
    coefficients: DDIMCoefficients,
    guidance: Guidance,
    frame_init_plan: FrameInitPlan | None,
    draw_noise: Callable[[tuple[int, ...]], Latents],
    on_step: Callable[[int, int, Latents], None] = lambda step, timestep, latents: None,
) -> Latents:
    """Latents of one clip per video.

    Args:
        unet: predicts the noise.
        first_frame: [videos, c, 1, h, w] clean latents of the photo.
        static_video: [videos, c, 1 or f, h, w]: the photo held still, or moved by the camera; FrameInit's low
        frequencies. noise: [videos, c, f, h, w], frame 0 included.
        coefficients: timesteps and one row of numbers per step.
        guidance: branches and scales.
        frame_init_plan: None switches FrameInit off.
        draw_noise: standard normal noise of a shape, in the published order; called only where eta > 0.
        on_step: called after each step with its index, its timestep and the latents.

    Returns:
        float32 [videos, c, f, h, w], frame 0 being `first_frame`.
    """
    initial = noise
    if frame_init_plan is not None:
        initial = frame_init(static_video, noise, frame_init_plan.alpha_cumprod, frame_init_plan.mask)

    # The branch without the image sees frame 0 of the initial noise instead, the same in all steps.
    noisy_first_frame = initial[:, :, :1]
    clean = [first_frame] * (1 if guidance.mode == "none" else 2)
    unet.start(np.stack([noisy_first_frame, *clean] if guidance.mode == "both" else clean))

    latents = initial[:, :, 1:]
    for step, timestep in enumerate(coefficients.timesteps):
        noise_preds = unet.predict(latents, int(timestep))
        noise_pred = combine_guidance(
            noise_preds, guidance.mode, guidance.scale_txt, guidance.scale_img, guidance.rescale
        )
        fresh = draw_noise(latents.shape) if coefficients.needs_noise else None
        latents = ddim_step(latents, noise_pred, coefficients.table[step], fresh)
        on_step(step, int(timestep), latents)
    return np.concatenate([first_frame, latents], axis=2)
