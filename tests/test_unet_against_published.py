"""The efficient U-Net against the plain published formulation in float64, on shapes the golden data does not have."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from consisti2v_rt.benchmarks.published import PublishedUNet  # noqa: E402
from consisti2v_rt.export.random_model import open_gates  # noqa: E402
from consisti2v_rt.export.unet import VideoUNet  # noqa: E402

BASE = {
    "block_out_channels": [32, 64],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "attention_head_dim": [2, 4],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 24,
    "n_temp_heads": 4,
    "n_frames": 4,
}
THREE_LEVELS = {
    "block_out_channels": [32, 64, 96],
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "attention_head_dim": [1, 2, 3],
    "layers_per_block": 2,
}
# name -> (changes of BASE, batch, height, width, text length)
CASES = {
    "one level": (
        {
            "block_out_channels": [32],
            "down_block_types": ["CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D"],
            "attention_head_dim": 1,
        },
        1, 6, 4, 7,
    ),
    "three levels, odd size": (THREE_LEVELS, 2, 5, 7, 9),
    "three levels, half odd": (THREE_LEVELS, 1, 10, 8, 9),
    "heads cut by the rotary half": ({"n_temp_heads": 1}, 1, 4, 4, 5),
    "odd number of temporal heads": ({"block_out_channels": [96, 96], "n_temp_heads": 3}, 1, 4, 6, 5),
    "one number of heads": ({"attention_head_dim": 4}, 2, 4, 4, 5),
    "two frames": ({"n_frames": 2}, 3, 4, 4, 5),
    "more frames, no window": ({"n_frames": 9, "augment_temporal_attention": False}, 1, 4, 4, 5),
    "sinusoidal, odd size": ({"temp_pos_embedding": "sinusoidal"}, 2, 7, 3, 5),
    "sinusoidal, text as long as the clip": ({"temp_pos_embedding": "sinusoidal"}, 1, 4, 4, 4),
    "rotary, text as long as the clip": ({}, 2, 4, 4, 4),
    "no stride": ({"use_frame_stride_condition": False}, 1, 4, 4, 5),
    "no temporal layers": ({"use_temporal": False}, 1, 4, 4, 5),
    "sine before cosine, shifted": ({"flip_sin_to_cos": False, "freq_shift": 1}, 1, 4, 4, 5),
    "other channels": ({"in_channels": 3, "out_channels": 3}, 1, 4, 4, 5),
    "one position": ({}, 1, 2, 2, 1),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("prepared", [False, True], ids=["as-loaded", "gates-folded"])
def test_same_function(name, prepared, relative_l2):
    changes, batch, height, width, length = CASES[name]
    config = {**BASE, **changes}
    torch.manual_seed(sum(map(ord, name)))
    unet = VideoUNet.from_config(config)
    open_gates(unet)
    published = PublishedUNet(config)
    published.load_state_dict(unet.state_dict())
    unet, published = unet.double(), published.double().eval()
    if prepared:
        unet.prepare_for_inference()
    channels, frames = config.get("in_channels", 4), config["n_frames"]
    sample = torch.randn(batch, channels, frames - 1, height, width, dtype=torch.float64)
    first_frame = torch.randn(batch, channels, 1, height, width, dtype=torch.float64)
    text = torch.randn(batch, length, 24, dtype=torch.float64)
    with torch.no_grad():
        got, expected = (
            model(sample, 261, text, first_frame_latents=first_frame, frame_stride=2) for model in (unet, published)
        )
    # The sinusoids are float32 in both.
    assert relative_l2(got, expected) < 1e-12


def test_a_timestep_per_clip_equals_clips_alone(relative_l2):
    """The published code raises on one timestep per clip; each clip must get its own."""
    torch.manual_seed(0)
    unet = VideoUNet.from_config(BASE)
    open_gates(unet)
    unet.double()
    sample = torch.randn(2, 4, 3, 4, 4, dtype=torch.float64)
    first_frame, text = sample[:, :, :1] * 0.5, torch.randn(2, 5, 24, dtype=torch.float64)
    timesteps, strides = torch.tensor([981, 21]), torch.tensor([1, 5])
    with torch.no_grad():
        together = unet(sample, timesteps, text, first_frame_latents=first_frame, frame_stride=strides)
        alone = [
            unet(
                sample[i : i + 1],
                timesteps[i],
                text[i : i + 1],
                first_frame_latents=first_frame[i : i + 1],
                frame_stride=strides[i],
            )
            for i in range(2)
        ]
    assert relative_l2(together, torch.cat(alone)) < 1e-12
