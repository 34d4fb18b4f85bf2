"""Same seed, same video: the whole runtime against the published pipeline in torch, from photo and prompt to pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from diffusers import DDIMScheduler  # noqa: E402

from consisti2v_rt import ImageToVideo  # noqa: E402
from consisti2v_rt.benchmarks.published import PublishedUNet  # noqa: E402
from consisti2v_rt.export.random_model import random_model  # noqa: E402
from consisti2v_rt.export.random_options import TINY_UNET  # noqa: E402
from consisti2v_rt.runtime.media.image import load_image, preprocess  # noqa: E402

PHOTO = Path(__file__).parents[1] / "assets" / "example.jpg"


@pytest.fixture(scope="module")
def published():
    """The tiny bundle's model in torch: library VAE and text encoder, published U-Net formulation."""
    model = random_model("tiny")
    unet = PublishedUNet(TINY_UNET)
    unet.load_state_dict(model.unet.state_dict())
    return model, unet.eval()


def low_frequencies_of(video, noise):
    """FrameInit as published: a Gaussian over the shifted complex spectrum, stop frequencies 0.25."""
    dims = (-3, -2, -1)
    grids = torch.meshgrid(*(2 * torch.arange(n).double() / n - 1 for n in noise.shape[2:]), indexing="ij")
    mask = torch.exp(-1 / (2 * 0.25**2) * sum(grid**2 for grid in grids)).float()
    low, high = (torch.fft.fftshift(torch.fft.fftn(part, dim=dims), dim=dims) for part in (video, noise))
    return torch.fft.ifftn(torch.fft.ifftshift(low * mask + high * (1 - mask), dim=dims), dim=dims).real


def sample(unet, first_frame, text, noise, *, steps, guidance_scale_txt, guidance_scale_img, frame_stride):
    """The published loop: FrameInit at timestep 850, DDIM, guidance over the branches stacked in the batch."""
    branches = len(text)
    ddim = DDIMScheduler(beta_start=0.00085, beta_end=0.012, steps_offset=1, clip_sample=False)
    ddim.set_timesteps(steps)
    static = first_frame.repeat(1, 1, noise.shape[2], 1, 1)
    noise = low_frequencies_of(ddim.add_noise(static, noise, torch.tensor([850])), noise)
    latents, first = noise[:, :, 1:], torch.cat([first_frame] * branches)
    if branches == 3:
        first[:1] = noise[:, :, :1]
    for timestep in ddim.timesteps:
        rows = torch.cat([latents] * branches)
        made = unet(rows, timestep, text, first_frame_latents=first, frame_stride=frame_stride).chunk(branches)
        guided = made[0]
        if branches == 2:
            guided = made[0] + guidance_scale_txt * (made[1] - made[0])
        elif branches == 3:
            guided = guided + guidance_scale_img * (made[1] - made[0]) + guidance_scale_txt * (made[2] - made[1])
        latents = ddim.step(guided, int(timestep), latents).prev_sample
    return torch.cat((first_frame, latents), dim=2)


def published_latents(published, prompt: str, negative: str, seed: int, **options):
    """The published draws in the published order, from torch's global generator."""
    model, unet = published
    pixels = torch.from_numpy(preprocess(load_image(PHOTO), 64, 48))

    def encode(text):
        ids = model.tokenizer(text, padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
        return model.text_encoder(input_ids=ids).last_hidden_state

    with torch.no_grad():
        torch.manual_seed(seed)
        first_frame = model.vae.encode(pixels).latent_dist.sample()[:, :, None] * 0.18215
        base, independent = torch.randn(1, 4, 1, 8, 6), torch.randn(1, 4, 16, 8, 6)
        noise = (base + independent) * 0.5**0.5
        texts = {"none": [prompt], "text": [negative, prompt], "both": [negative, negative, prompt]}[
            options.pop("mode")
        ]
        embeddings = torch.cat([encode(text) for text in texts])
        latents = sample(unet, first_frame, embeddings, noise, **options)
        frames = model.vae.decode(latents[0].transpose(0, 1) / 0.18215).sample
    pixels = ((frames / 2 + 0.5).clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1)
    return latents.numpy(), pixels.numpy()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("text", {"guidance_scale_txt": 7.5, "guidance_scale_img": 1.0}),
        ("both", {"guidance_scale_txt": 7.5, "guidance_scale_img": 1.5}),
        ("none", {"guidance_scale_txt": 1.0, "guidance_scale_img": 1.0, "frame_stride": 5}),
    ],
)
def test_same_seed_same_video(published, tiny_bundle, relative_l2, mode, options):
    steps, seed = 4, 11
    stride = options.get("frame_stride", 3)
    expected, expected_pixels = published_latents(
        published, "a cat looks up", "blurry", seed, mode=mode, steps=steps,
        **{**options, "frame_stride": stride},
    )  # fmt: skip
    videos = ImageToVideo.from_bundle(tiny_bundle)(
        PHOTO, "a cat looks up", negative_prompt="blurry", num_inference_steps=steps, seed=seed, **options
    )
    assert relative_l2(videos.latents, expected) < 1e-5
    difference = np.abs(videos.frames[0].astype(int) - expected_pixels.astype(int))
    # Truncation to 8 bits can turn a rounding difference into one level.
    assert difference.max() <= 1 and difference.mean() < 0.01
