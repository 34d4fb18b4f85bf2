"""The published denoising loop, latents in and latents out; text encoder and VAE are somebody else's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ...errors import UserError
from .frame_init import FrameInitOptions, low_pass_filter, mix_frequencies
from .scheduler import DDIMScheduler, SchedulerOptions

StepCallback = Callable[[int, int, Tensor], None]

_PUBLISHED_FRAME_INIT = FrameInitOptions()
_PUBLISHED_SCHEDULER = SchedulerOptions()


def guidance_branches(guidance_scale_txt: float, guidance_scale_img: float) -> int:
    """How many copies of the batch the U-Net sees: 1 (none), 2 (text), 3 (text and image)."""
    if guidance_scale_img > 1.0:
        return 3
    return 2 if guidance_scale_txt > 1.0 else 1


def guide(prediction: Tensor, guidance_scale_txt: float, guidance_scale_img: float, rescale: float) -> Tensor:
    """Classifier-free guidance (https://arxiv.org/abs/2207.12598) over the branches stacked in the batch.

    Args:
        prediction: (branches * b, ...): [empty, prompt], or [empty with noisy first frame, empty, prompt].
        rescale: share rescaled to the prompt branch's deviation (https://arxiv.org/abs/2305.08891).

    Returns:
        (b, ...).
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
    frame_init: FrameInitOptions | None = _PUBLISHED_FRAME_INIT,
    static_latents: Tensor | None = None,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
    scheduler: SchedulerOptions = _PUBLISHED_SCHEDULER,
    on_step: StepCallback | None = None,
) -> Tensor:
    """Denoise one clip.

    Args:
        unet: called as :class:`PublishedUNet` is.
        first_frame_latents: (b, 4, 1, h, w), scaled.
        text_embeddings: (branches * b, n, context): [prompt], [empty, prompt] or [empty, empty, prompt].
        noise: (b, 4, frames, h, w), frame 0 included, before FrameInit.
        guidance_scale_txt: above 1 guides by text.
        guidance_scale_img: above 1 guides by text and image, whatever the text scale is.
        guidance_rescale: for text guidance only; 0 is off.
        frame_init: None leaves the noise as it is.
        static_latents: (b, 4, frames, h, w) video for FrameInit; None repeats the first frame.
        eta: share of fresh noise in a DDIM step; its noise comes from `generator`.
        on_step: called with (step, timestep, latents) after every step.

    Returns:
        (b, 4, frames, h, w), the first frame's latents in front.

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
    ddim = DDIMScheduler(scheduler, num_inference_steps)
    if frame_init is not None:
        frames, height, width = noise.shape[2:]
        static = first_frame_latents.repeat(1, 1, frames, 1, 1) if static_latents is None else static_latents
        noisy = ddim.add_noise(static, noise, frame_init.noise_level)
        mask = low_pass_filter((frames, height, width), frame_init).to(noise.device)
        noise = mix_frequencies(noisy, noise, mask)

    latents = noise[:, :, 1:]
    first = torch.cat([first_frame_latents] * branches)
    if branches == 3:
        first = torch.cat((noise[:, :, :1], first_frame_latents, first_frame_latents))
    on_device = torch.tensor(ddim.timesteps, device=noise.device)
    for i, timestep in enumerate(ddim.timesteps):
        prediction = unet(
            torch.cat([latents] * branches),
            on_device[i],
            encoder_hidden_states=text_embeddings,
            first_frame_latents=first,
            frame_stride=frame_stride,
        )
        guided = guide(prediction, guidance_scale_txt, guidance_scale_img, guidance_rescale)
        fresh = None
        if eta > 0:
            size, device, dtype = latents.shape, latents.device, latents.dtype
            fresh = torch.randn(size, generator=generator, device=device, dtype=dtype)
        latents = ddim.step(guided, timestep, latents, eta=eta, noise=fresh)
        if on_step is not None:
            on_step(i, timestep, latents)
    return torch.cat((first_frame_latents, latents), dim=2)


def sample_autoregressive(
    unet: nn.Module,
    first_frame_latents: Tensor,
    text_embeddings: Tensor,
    noises: Sequence[Tensor],
    *,
    num_inference_steps: int = 50,
    guidance_scale_txt: float = 7.5,
    guidance_scale_img: float = 1.0,
    guidance_rescale: float = 0.0,
    frame_stride: int = 3,
    frame_init: FrameInitOptions | None = _PUBLISHED_FRAME_INIT,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
    scheduler: SchedulerOptions = _PUBLISHED_SCHEDULER,
) -> Tensor:
    """Clips in a row, each starting from the last latent frame of the one before; options as :func:`sample`.

    Args:
        noises: one (b, 4, frames, h, w) for every clip.

    Returns:
        (b, 4, clips * frames - clips + 1, h, w); shared frames appear once.
    """
    video = first_frame_latents
    for noise in noises:
        clip = sample(
            unet,
            video[:, :, -1:],
            text_embeddings,
            noise,
            num_inference_steps=num_inference_steps,
            guidance_scale_txt=guidance_scale_txt,
            guidance_scale_img=guidance_scale_img,
            guidance_rescale=guidance_rescale,
            frame_stride=frame_stride,
            frame_init=frame_init,
            eta=eta,
            generator=generator,
            scheduler=scheduler,
        )
        video = torch.cat((video, clip[:, :, 1:]), dim=2)
    return video
