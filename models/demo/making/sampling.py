"""The runtime's own loop over the torch U-Net: samples during training and for evaluation without an export."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from ....export.unet import VideoUNet
from ....kernels.ddim import SchedulerConfig, alphas_cumprod, ddim_table
from ....kernels.frame_init import frame_init_mask
from ....kernels.guidance import guidance_mode
from ....runtime.bundle.manifest import FrameInitDefaults
from ....runtime.loop.denoise import FrameInitPlan, Guidance, Latents, denoise_clip
from .captions import move_phrase
from .data import ClipSource
from .latent_clips import encode_frames
from .noising import make_noise
from .text_encoder import CaptionEncoder


@dataclass
class TorchUNet:
    """The U-Net as the loop's noise predictor; all branches run as one batch."""

    unet: VideoUNet
    texts: Tensor
    """[branches * videos, 77, width], branch-major."""
    stride: int

    def start(self, first_frames: Latents) -> None:
        self._shape = first_frames.shape
        self._first = torch.from_numpy(first_frames).flatten(0, 1).to(self.texts.device)
        self._key_values = self.unet.text_key_values(self.texts)

    def predict(self, sample: Latents, timestep: int, guided: bool = True) -> Latents:
        branches = self._shape[0]
        rows = torch.from_numpy(sample).to(self.texts.device).repeat(branches, 1, 1, 1, 1)
        out = self.unet.denoise(rows, timestep, self._key_values, self._first, self.stride)
        result: Latents = out.unflatten(0, (branches, -1)).float().cpu().numpy()
        return result if guided else result[-1:]


@dataclass(frozen=True)
class SampleSettings:
    """Options of a sampling; the runtime's names and defaults."""

    steps: int = 50
    guidance_scale_txt: float = 7.5
    frame_stride: int = 3
    use_frameinit: bool = True
    seed: int = 0


@torch.no_grad()
def sample_videos(
    unet: VideoUNet,
    vae: AutoencoderKL,
    captions: CaptionEncoder,
    pictures: Tensor,
    prompts: list[str],
    settings: SampleSettings,
) -> Tensor:
    """Animate pictures.

    Args:
        unet, vae, captions: the model, in evaluation mode, on one device.
        pictures: float [n, 3, size, size] in [-1, 1].
        prompts: n texts.
        settings: every video's noise is drawn from `seed` in turn, so that equal places get equal noise.

    Returns:
        float [n, f, 3, size, size] in about [-1, 1], frame 0 the round trip of the picture.
    """
    device = next(unet.parameters()).device
    scaling = float(vae.config.scaling_factor)
    first = (encode_frames(vae, pictures.to(device)) * scaling)[:, :, None].cpu().numpy()
    shape = (len(prompts), first.shape[1], unet.config.n_frames, *first.shape[-2:])
    noise = make_noise(shape, np.random.default_rng(settings.seed)).numpy()
    mode = guidance_mode(settings.guidance_scale_txt, 1.0)
    branches = [prompts] if mode == "none" else [[""] * len(prompts), prompts]
    texts = captions([text for branch in branches for text in branch])
    plan = None
    if settings.use_frameinit:
        defaults = FrameInitDefaults()
        level = float(alphas_cumprod(SchedulerConfig())[defaults.noise_level])
        mask = frame_init_mask(defaults.filter, *shape[2:], defaults.d_s, defaults.d_t, defaults.order)
        plan = FrameInitPlan(level, mask)
    latents = denoise_clip(
        TorchUNet(unet, texts, settings.frame_stride),
        first,
        first,
        noise,
        table=ddim_table(SchedulerConfig(), settings.steps),
        guidance=Guidance(mode, settings.guidance_scale_txt, 1.0),
        frame_init_plan=plan,
        draw_noise=lambda shape: np.zeros(shape, np.float32),
    )
    frames = torch.from_numpy(latents).to(device).transpose(1, 2)
    decoded: Tensor = vae.decode(frames.flatten(0, 1) / scaling).sample
    return decoded.unflatten(0, frames.shape[:2]).cpu()


def held_out_pictures(source: ClipSource) -> list[tuple[str, Tensor]]:
    """One view of each held-out photo, as (subject, [3, size, size] in [-1, 1]): its middle, 1.5 views high."""
    pictures = []
    for subject, levels in source.photos:
        photo = levels[0]
        y, x = ((length - source.size) // 2 for length in photo.shape[1:])
        pictures.append((subject, 2 * photo[:, y : y + source.size, x : x + source.size] - 1))
    return pictures


def sheet_rows(
    unet: VideoUNet, vae: AutoencoderKL, captions: CaptionEncoder, source: ClipSource, steps: int
) -> list[Tensor]:
    """Rows of a sample sheet: five moves of one held-out photo each, frames 0, 3, 6, 9, 12 and 15."""
    moves = ("pan_left", "pan_down", "zoom_in", "rotate_clockwise", "still")
    pictures = torch.stack([picture for _, picture in held_out_pictures(source)[: len(moves)]])
    settings = SampleSettings(steps=steps, guidance_scale_txt=3.0)
    videos = sample_videos(unet, vae, captions, pictures, [move_phrase(move) for move in moves], settings)
    return [video[::3] for video in videos]
