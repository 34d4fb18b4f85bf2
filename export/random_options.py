"""U-Net options of models with random weights; no torch."""

from __future__ import annotations

import os
from typing import Any

from ..errors import UserError
from ..locations import ASSETS
from ..runtime.files.guarded_read import CONFIG, read_json_object
from .unet.config import UNetConfig

RANDOM_VAE_SCALE_FACTOR = 8
"""Pixels per latent position of the VAEs with random weights."""
TINY_UNET: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": [32, 32],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "attention_head_dim": [2, 2],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 16,
    "n_temp_heads": 4,
}

EXAMPLE = ASSETS / "example_unet.json"


def random_unet_config(kind: str) -> UNetConfig:
    """The U-Net of ``full`` (the published size), ``tiny``, or a JSON file with its keyword names.

    Raises:
        UserError: no such kind or file, or options that do not fit together.
    """
    config = UNetConfig.from_dict(_options(kind))
    if config.in_channels != config.out_channels or config.in_channels > 256:
        raise UserError(
            f"U-Net options in_channels={config.in_channels} and out_channels={config.out_channels} do not fit: both "
            "are the latents' channels, 1 to 256."
        )
    if config.cross_attention_dim % 2:
        raise UserError(
            f"U-Net option cross_attention_dim={config.cross_attention_dim} does not fit: the text encoder with random "
            "weights has two heads; give an even number."
        )
    return config


def _options(kind: str) -> dict[str, Any]:
    if kind == "full":
        return {}
    if kind == "tiny":
        return TINY_UNET
    if not os.path.isfile(kind):  # noqa: PTH113  (a name too long is no file; Path.is_file() raises)
        raise UserError(
            f"--random-weights {kind}: neither 'full' nor 'tiny' nor a readable JSON file of U-Net options, such as "
            f'"{EXAMPLE}".'
        )
    return read_json_object(kind, CONFIG, f"--random-weights {kind}")
