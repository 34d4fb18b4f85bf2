"""Same seed, same video: the whole runtime against the published pipeline in torch, from photo and prompt to pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from consisti2v_rt import ImageToVideo  # noqa: E402
from consisti2v_rt.benchmarks.published import PublishedUNet  # noqa: E402
from consisti2v_rt.benchmarks.published.pipeline import sample  # noqa: E402
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
        published, "a cat looks up", "blurry", seed, mode=mode, num_inference_steps=steps,
        **{**options, "frame_stride": stride},
    )  # fmt: skip
    videos = ImageToVideo.from_bundle(tiny_bundle)(
        PHOTO, "a cat looks up", negative_prompt="blurry", num_inference_steps=steps, seed=seed, **options
    )
    assert relative_l2(videos.latents, expected) < 1e-5
    difference = np.abs(videos.frames[0].astype(int) - expected_pixels.astype(int))
    # Truncation to 8 bits can turn a rounding difference into one level.
    assert difference.max() <= 1 and difference.mean() < 0.01
