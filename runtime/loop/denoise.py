"""The denoising loop: Algorithm of ConsistI2V (arXiv:2402.04324) as published, on plain arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ...kernels.ddim import SchedulerConfig, alphas_cumprod
from ...kernels.frame_init import frame_init, frame_init_mask
from ...kernels.guidance import GuidanceMode, combine_guidance
from ...kernels.sampler import StepTable, sampler_step
from ..request.settings import ResolvedSettings
from ..timings import Timings

Latents = NDArray[np.float32]
OnStep = Callable[[int, int, Latents], None]
"""Called after a step with its index, its timestep and the latents."""


class Decoded(NamedTuple):
    """What is left of a call's clips."""

    frames: NDArray[np.uint8]
    """[videos, frames, height, width, 3]."""
    latents: Latents
    """[videos, c, frames, h, w]."""


def join_clips(clips: Sequence[Latents], overlap: int = 1) -> Latents:
    """Clips [videos, c, f, h, w] -> one video. Neighbours share `overlap` frames, which fade from one to the next; of a
    single one, the last of the earlier clip stays, as published.
    """
    joined = clips[0]
    for clip in clips[1:]:
        faded = fade(joined[:, :, -overlap:], clip[:, :, :overlap], axis=2)
        joined = np.concatenate([joined[:, :, :-overlap], faded, clip[:, :, overlap:]], axis=2)
    return joined


def fade(before: Latents, after: Latents, axis: int) -> Latents:
    """Frames that two clips share: the earlier clip's at first, the later one's at the end, linear between."""
    count = before.shape[axis]
    shape = [count if place == axis else 1 for place in range(before.ndim)]
    share = (np.arange(count, dtype=np.float32) / max(count - 1, 1)).reshape(shape)
    return before + share * (after - before)


class NoisePredictor(Protocol):
    """The U-Net as the loop sees it: every guidance branch of every video at once."""

    def start(self, first_frames: Latents) -> None:
        """first_frames [branches, videos, c, 1, h, w]: what each branch sees as frame 0, for all steps to come."""

    def predict(self, sample: Latents, timestep: int, guided: bool = True) -> Latents:
        """sample [videos, c, f-1, h, w] -> [branches, videos, c, f-1, h, w]; without guidance the last branch, the
        prompt's, alone: [1, videos, c, f-1, h, w].
        """


@dataclass(frozen=True)
class Guidance:
    """How the branches of a step are combined; see :func:`combine_guidance`."""

    mode: GuidanceMode
    scale_txt: float
    scale_img: float
    rescale: float = 0.0
    steps: range | None = None
    """In which steps guidance acts, None: in all. In the others the prompt's branch runs alone (arXiv:2404.07724)."""

    @classmethod
    def of(cls, settings: ResolvedSettings) -> Guidance:
        """What the settings of a call ask for."""
        scales = settings.guidance_scale_txt, settings.guidance_scale_img, settings.guidance_rescale
        return cls(settings.guidance, *scales, settings.guided_steps)

    def acts_in(self, step: int) -> bool:
        return self.steps is None or step in self.steps


@dataclass(frozen=True)
class FrameInitPlan:
    """FrameInit's noise level as a cumulative alpha, and its low-pass mask."""

    alpha_cumprod: float
    mask: Latents

    @classmethod
    def of(cls, settings: ResolvedSettings, scheduler: SchedulerConfig, shape: tuple[int, ...]) -> FrameInitPlan | None:
        """What the settings ask for, for latents [videos, c, f, h, w]; None: FrameInit is off."""
        if not settings.use_frameinit:
            return None
        d_s, d_t, order = settings.frameinit_d_s, settings.frameinit_d_t, settings.frameinit_order
        mask = frame_init_mask(settings.frameinit_filter, *shape[2:], d_s, d_t, order)
        return cls(float(alphas_cumprod(scheduler)[settings.frameinit_noise_level]), mask)


def denoise_clip(
    unet: NoisePredictor,
    first_frame: Latents,
    static_video: Latents,
    noise: Latents,
    *,
    table: StepTable,
    guidance: Guidance,
    frame_init_plan: FrameInitPlan | None,
    draw_noise: Callable[[tuple[int, ...]], Latents],
    on_step: OnStep | None = None,
    timings: Timings | None = None,
) -> Latents:
    """Latents of one clip per video.

    Args:
        unet: predicts the noise.
        first_frame: [videos, c, 1, h, w] clean latents of the photo.
        static_video: [videos, c, 1 or f, h, w]: the photo held still, or moved by the camera; FrameInit's low
            frequencies.
        noise: [videos, c, f, h, w], frame 0 included.
        table: timesteps, and one linear map per step.
        guidance: branches, scales, and the steps they act in.
        frame_init_plan: None switches FrameInit off.
        draw_noise: standard normal noise of a shape, in the published order; called at every step of a table that
            needs noise.
        on_step: called after each step; None: no callback.
        timings: FrameInit's time is counted as "frame_init".

    Returns:
        float32 [videos, c, f, h, w], frame 0 being `first_frame`.
    """
    initial = noise
    if frame_init_plan is not None:
        with (Timings() if timings is None else timings).measure("frame_init"):
            initial = frame_init(static_video, noise, frame_init_plan.alpha_cumprod, frame_init_plan.mask)

    # The branch without the image sees frame 0 of the initial noise instead, the same in all steps.
    noisy_first_frame = initial[:, :, :1]
    clean = [first_frame] * (1 if guidance.mode == "none" else 2)
    unet.start(np.stack([noisy_first_frame, *clean] if guidance.mode == "both" else clean))

    state = table.start(initial[:, :, 1:])
    for step, timestep in enumerate(table.timesteps):
        guided = guidance.acts_in(step)
        noise_preds = unet.predict(state[0], int(timestep), guided)
        mode = guidance.mode if guided else "none"
        noise_pred = combine_guidance(noise_preds, mode, guidance.scale_txt, guidance.scale_img, guidance.rescale)
        fresh = draw_noise(noise_pred.shape) if table.needs_noise else None
        state = sampler_step(state, noise_pred, table.matrices[step], fresh)
        if on_step is not None:
            on_step(step, int(timestep), state[0])
    return np.concatenate([first_frame, state[0]], axis=2)
