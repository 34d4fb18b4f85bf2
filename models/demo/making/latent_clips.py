"""Training clips as latents, encoded once so that training steps do not pay for the autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from .checkpoint import load_checkpoint, save_checkpoint
from .data import ClipSource


@dataclass
class LatentClips:
    """Encoded clips, scaled to unit standard deviation."""

    latents: Tensor
    """float16 [n, f, 4, h, w]."""
    strides: Tensor
    """int64 [n]."""
    captions: list[str]
    scaling_factor: float

    def __len__(self) -> int:
        return len(self.captions)


@torch.no_grad()
def encode_frames(vae: AutoencoderKL, frames: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Frames [f, 3, h, w] in [-1, 1] -> unscaled latents [f, 4, h', w']: a posterior sample, or its mean."""
    posterior = vae.encode(frames).latent_dist
    mean: Tensor = posterior.mean
    if generator is None:
        return mean
    noise = torch.randn(mean.shape, generator=generator).to(mean.device)
    sample: Tensor = mean + posterior.std * noise
    return sample


def encode_clips(
    source: ClipSource | None,
    vae: AutoencoderKL,
    work: Path,
    count: int,
    *,
    name: str = "clips.pt",
    scaling_factor: float | None = None,
    device: str = "cpu",
    seed: int = 0,
) -> LatentClips:
    """Draw and encode `count` clips, or read those kept in the file `name`.

    The scaling factor is one over the measured standard deviation, as in Stable Diffusion's 0.18215 (Rombach et al.
    2022, arXiv:2112.10752, appendix G), unless one is given.
    """
    path = work / name
    state = load_checkpoint(path)
    if state is None:
        if source is None:
            raise FileNotFoundError(f"{path} is missing: clips can be encoded only where the media are.")
        rng, generator = np.random.default_rng([seed, 1]), torch.Generator().manual_seed(seed)
        vae = vae.to(device)
        encoded, strides, captions = [], [], []
        for _ in range(count):
            clip = source.draw(rng)
            encoded.append(encode_frames(vae, clip.frames.to(device), generator).cpu())
            strides.append(clip.stride)
            captions.append(clip.caption)
        latents = torch.stack(encoded)
        if scaling_factor is None:
            scaling_factor = round(float(1 / latents.std()), 5)
        state = {
            "latents": (latents * scaling_factor).half(),
            "strides": torch.tensor(strides),
            "captions": captions,
            "scaling_factor": scaling_factor,
        }
        save_checkpoint(path, state)
    return LatentClips(state["latents"], state["strides"], state["captions"], state["scaling_factor"])
