"""The published denoising loop, latents in and latents out, with FrameInit (https://arxiv.org/abs/2402.04324) and the
correlated noise of PYoCo (https://arxiv.org/abs/2305.10474) before it; text encoder and VAE are somebody else's.

The scheduler is diffusers' DDIM, as in the published pipeline. Complex FFTs, shifted spectra and `.real`, as published.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from ...errors import UserError

_VIDEO_DIMS = (-3, -2, -1)


def ddim(steps: int = 50, **options: Any) -> DDIMScheduler:
    """The published scheduler at a number of steps; options of diffusers' class replace published ones."""
    published = {"beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1, "clip_sample": False}
    scheduler = DDIMScheduler(**{**published, **options})
    scheduler.set_timesteps(steps)
    return scheduler


# -- the noise before the loop -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FrameInitOptions:
    """Low-pass filter, and the timestep whose noise the static video gets; the defaults are the published ones."""

    filter: str = "gaussian"  # or "butterworth", "ideal", "box"
    order: int = 4  # of "butterworth" only
    d_s: float = 0.25  # spatial stop frequency, relative to Nyquist
    d_t: float = 0.25  # temporal stop frequency, relative to Nyquist
    noise_level: int = 850


def low_pass_filter(size: tuple[int, int, int], options: FrameInitOptions) -> Tensor:
    """[frames, h, w] float32 gains, laid out as a shifted spectrum; off-centre for odd sizes, as published."""
    mask, d_s, d_t = torch.zeros(size), options.d_s, options.d_t
    if d_s == 0 or d_t == 0:
        return mask
    if options.filter == "box":
        centre = [n // 2 for n in size]
        # The original takes the spatial half-width from the height alone.
        half_s, half_t = round(centre[1] * d_s), round(centre[0] * d_t)
        halves = (half_t, half_s, half_s)
        mask[tuple(slice(place - half, place + half) for place, half in zip(centre, halves, strict=True))] = 1.0
        return mask
    grids = [2 * torch.arange(n, dtype=torch.float64) / n - 1 for n in size]
    t, h, w = torch.meshgrid(*grids, indexing="ij")
    squared = (d_s / d_t * t) ** 2 + h**2 + w**2
    if options.filter == "gaussian":
        gains = torch.exp(-1 / (2 * d_s**2) * squared)
    elif options.filter == "butterworth":
        gains = 1 / (1 + (squared / d_s**2) ** options.order)
    elif options.filter == "ideal":
        gains = (squared <= 2 * d_s).double()
    else:
        raise UserError(f"filter must be one of gaussian, butterworth, ideal, box, not {options.filter!r}.")
    return gains.float()


def mix_frequencies(latents: Tensor, noise: Tensor, mask: Tensor) -> Tensor:
    """Low frequencies of `latents`, high ones of `noise`, both [b, c, frames, h, w]; the transform runs in float32.

    Args:
        mask: [frames, h, w] gains from :func:`low_pass_filter`.
    """
    low, high = (
        torch.fft.fftshift(torch.fft.fftn(part.float(), dim=_VIDEO_DIMS), dim=_VIDEO_DIMS) for part in (latents, noise)
    )
    mixed = torch.fft.ifftshift(low * mask + high * (1 - mask), dim=_VIDEO_DIMS)
    return torch.fft.ifftn(mixed, dim=_VIDEO_DIMS).real.to(latents.dtype)


def draw_noise(
    shape: tuple[int, ...], method: str = "pyoco_mixed", alpha: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """Unit-variance float32 starting noise, drawn in the published order (shared noise first).

    Args:
        shape: [b, c, frames, h, w], frame 0 included.
        method: "pyoco_mixed", "pyoco_progressive" or "vanilla" (independent frames).
        alpha: share of the common part; 1 gives a correlation of 0.5 between frames.
        generator: None draws from torch's global generator.

    Raises:
        UserError: for an unknown method.
    """
    frames, common, own = shape[2], math.sqrt(alpha**2 / (1 + alpha**2)), math.sqrt(1 / (1 + alpha**2))

    def draw(count: int) -> Tensor:
        return torch.randn((*shape[:2], count, *shape[3:]), generator=generator)

    if method == "vanilla":
        return draw(frames)
    if method == "pyoco_mixed":
        return common * draw(1) + own * draw(frames)
    if method == "pyoco_progressive":
        # A whole clip is drawn for the sake of its frame 0, and every frame once more.
        noise, independent = draw(frames), draw(frames)
        for i in range(1, frames):
            noise[:, :, i] = common * noise[:, :, i - 1] + own * independent[:, :, i]
        return noise
    raise UserError(f"The noise method must be pyoco_mixed, pyoco_progressive or vanilla, not {method!r}.")


# -- the loop ----------------------------------------------------------------------------------------------------------


def guidance_branches(guidance_scale_txt: float, guidance_scale_img: float) -> int:
    """How many copies of the batch the U-Net sees: 1 (none), 2 (text), 3 (text and image)."""
    return 3 if guidance_scale_img > 1.0 else 2 if guidance_scale_txt > 1.0 else 1


def guide(prediction: Tensor, guidance_scale_txt: float, guidance_scale_img: float, rescale: float) -> Tensor:
    """Classifier-free guidance (https://arxiv.org/abs/2207.12598) over the branches stacked in the batch.

    Args:
        prediction: [branches * b, ...]: [empty, prompt], or [empty with noisy first frame, empty, prompt].
        rescale: share rescaled to the prompt branch's deviation (https://arxiv.org/abs/2305.08891).

    Returns:
        [b, ...].
    """
    branches = guidance_branches(guidance_scale_txt, guidance_scale_img)
    if branches == 1:
        return prediction
    if branches == 3:
        nothing, image, both = prediction.chunk(3)
        return nothing + guidance_scale_img * (image - nothing) + guidance_scale_txt * (both - image)
    empty, prompt = prediction.chunk(2)
    guided = empty + guidance_scale_txt * (prompt - empty)
    if rescale > 0.0:
        dims = list(range(1, prompt.ndim))
        factor = prompt.std(dim=dims, keepdim=True) / guided.std(dim=dims, keepdim=True)
        guided = rescale * (guided * factor) + (1 - rescale) * guided
    return guided


@torch.no_grad()
def sample(
    unet: nn.Module,
    first_frame_latents: Tensor,
    text_embeddings: Tensor,
    noise: Tensor,
    *,
    num_inference_steps: int = 50,
    guidance_scale_txt: float = 7.5,
    guidance_scale_img: float = 1.0,
    guidance_rescale: float = 0.0,
    frame_stride: int = 3,
    frame_init: FrameInitOptions | None = FrameInitOptions(),
    eta: float = 0.0,
    generator: torch.Generator | None = None,
    scheduler: dict[str, Any] | None = None,
    on_step: Callable[[int, int, Tensor], None] | None = None,
) -> Tensor:
    """Denoise one clip.

    Args:
        unet: called as :class:`PublishedUNet` is.
        first_frame_latents: [b, 4, 1, h, w], scaled.
        text_embeddings: [branches * b, n, context]: [prompt], [empty, prompt] or [empty, empty, prompt].
        noise: [b, 4, frames, h, w], frame 0 included, before FrameInit.
        guidance_scale_txt: above 1 guides by text.
        guidance_scale_img: above 1 guides by text and image, whatever the text scale is.
        guidance_rescale: for text guidance only; 0 is off.
        frame_init: None leaves the noise as it is.
        eta: share of fresh noise in a DDIM step; its noise comes from `generator`.
        scheduler: options of :func:`ddim`.
        on_step: called with (step, timestep, latents) after every step.

    Returns:
        [b, 4, frames, h, w], the first frame's latents in front.

    Raises:
        UserError: for rescale with image guidance (the original fails there), or branches that do not fit.
    """
    branches = guidance_branches(guidance_scale_txt, guidance_scale_img)
    if branches == 3 and guidance_rescale > 0.0:
        raise UserError("guidance_rescale needs text guidance alone; set it to 0, or guidance_scale_img to 1.")
    if text_embeddings.shape[0] != branches * noise.shape[0]:
        raise UserError(
            f"These guidance scales take {branches} text embeddings for each of the {noise.shape[0]} clips, "
            f"not {text_embeddings.shape[0]} in all."
        )
    steps = ddim(num_inference_steps, **(scheduler or {}))
    if frame_init is not None:
        frames, height, width = noise.shape[2:]
        static = first_frame_latents.repeat(1, 1, frames, 1, 1)
        noisy = steps.add_noise(static, noise, torch.tensor([frame_init.noise_level]))
        noise = mix_frequencies(noisy, noise, low_pass_filter((frames, height, width), frame_init).to(noise.device))

    latents, first = noise[:, :, 1:], torch.cat([first_frame_latents] * branches)
    if branches == 3:
        first = torch.cat((noise[:, :, :1], first_frame_latents, first_frame_latents))
    for i, timestep in enumerate(steps.timesteps):
        prediction = unet(
            torch.cat([latents] * branches),
            timestep.to(noise.device),
            encoder_hidden_states=text_embeddings,
            first_frame_latents=first,
            frame_stride=frame_stride,
        )
        guided = guide(prediction, guidance_scale_txt, guidance_scale_img, guidance_rescale)
        latents = steps.step(guided, int(timestep), latents, eta=eta, generator=generator).prev_sample
        if on_step is not None:
            on_step(i, int(timestep), latents)
    return torch.cat((first_frame_latents, latents), dim=2)


def sample_autoregressive(
    unet: nn.Module, first_frame_latents: Tensor, text_embeddings: Tensor, noises: Sequence[Tensor], **options: Any
) -> Tensor:
    """Clips in a row, each starting from the last latent frame of the one before; options as :func:`sample`.

    Args:
        noises: one [b, 4, frames, h, w] for every clip.

    Returns:
        [b, 4, clips * frames - clips + 1, h, w]; shared frames appear once.
    """
    video = first_frame_latents
    for noise in noises:
        clip = sample(unet, video[:, :, -1:], text_embeddings, noise, **options)
        video = torch.cat((video, clip[:, :, 1:]), dim=2)
    return video
