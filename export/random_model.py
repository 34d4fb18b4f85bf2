"""Models with seeded random weights: for work, tests and measurements without a checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from .random_options import random_unet_config
from .source_model import SourceModel
from .unet import UNetConfig, VideoUNet
from .unet.gate import GatedResidual
from .vocabulary import clip_tokenizer

_SD_VAE_WIDTHS = [128, 256, 512, 512]
_TINY_VAE_WIDTHS = [8, 8, 16, 16]


def random_model(kind: str, seed: int = 0) -> SourceModel:
    """A model with random weights.

    Args:
        kind: ``full`` (the published size), ``tiny``, or the path of a JSON file with the U-Net's keyword names; the
            VAE and text encoder are of the published size where the U-Net has the published text width, else tiny.
        seed: of all weights.

    Raises:
        UserError: no such kind or file.
    """
    config = random_unet_config(kind)
    full = config.cross_attention_dim == UNetConfig.cross_attention_dim
    torch.manual_seed(seed)
    unet = VideoUNet(config)
    open_gates(unet)
    return SourceModel(
        unet=unet.prepare_for_inference(),
        vae=_vae(_SD_VAE_WIDTHS if full else _TINY_VAE_WIDTHS, config.in_channels).eval().requires_grad_(False),
        text_encoder=_text_encoder(config.cross_attention_dim, full).eval().requires_grad_(False),
        tokenizer=clip_tokenizer(),
        source=f"random weights ({kind if kind in ('full', 'tiny') else Path(kind).name}), seed {seed}",
        revision="none",
        licence="Apache-2.0",
        trained=False,
    )


def open_gates(unet: VideoUNet) -> None:
    """Random gates and stride embedding: as built they are closed and zero, which would hide the temporal layers."""
    for module in unet.modules():
        if isinstance(module, GatedResidual):
            nn.init.uniform_(module.alpha, 0.1, 0.9)
    if unet.frame_stride_embedding is not None:
        unet.frame_stride_embedding.linear_2.reset_parameters()


def _vae(widths: list[int], latent_channels: int) -> AutoencoderKL:
    full = widths == _SD_VAE_WIDTHS
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * len(widths),
        up_block_types=["UpDecoderBlock2D"] * len(widths),
        block_out_channels=widths,
        layers_per_block=2 if full else 1,
        latent_channels=latent_channels,
        norm_num_groups=32 if full else 4,
        sample_size=256,
        scaling_factor=0.18215,
    )


def _text_encoder(width: int, full: bool) -> CLIPTextModel:
    """Stable Diffusion 2's text encoder (OpenCLIP ViT-H, 23 layers), or a two-layer one of the U-Net's text width."""
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=23 if full else 2,
        num_attention_heads=16 if full else 2,
        hidden_act="gelu",
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=1,
    )
    return CLIPTextModel(config)
