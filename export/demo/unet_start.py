"""A start for the U-Net from random weights: every branch silent, the predicted noise equal to the noisy input.

At the noisier timesteps the input is nearly all noise, so this start is already close there, and training begins with
what is to be learnt. The published start (gates closed, stride embedding zero) is for growing out of a trained image
model and would only delay the temporal layers here.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from ..unet import VideoUNet
from ..unet.blocks import UpBlock
from ..unet.gate import GatedResidual
from ..unet.resnets import SpatialResnet
from ..unet.transformers import SpatialTransformer

GATE_START = 0.5
# Constant channels in a norm group fix its scale; see vae_start.
_CONSTANT = 4.0


@torch.no_grad()
def start_as_identity(unet: VideoUNet) -> None:
    """Set the weights as the module's text says, in place; gates half open, the stride embedding live.

    Args:
        unet: its first width has at least one norm group of at least 4 channels for each latent channel.

    Raises:
        ValueError: the norm groups are too few or too small.
    """
    config = unet.config
    width, groups, latents = config.block_out_channels[0], config.norm_num_groups, config.in_channels
    size = width // groups
    if size < 4 or groups < latents:
        raise ValueError(f"{groups} norm groups of {size} channels: the identity start needs {latents} groups of 4.")
    for module in unet.modules():
        if isinstance(module, SpatialResnet):
            _silence(module.conv2)
        elif isinstance(module, SpatialTransformer):
            _silence(module.proj_out)
        elif isinstance(module, GatedResidual):
            nn.init.constant_(module.alpha, GATE_START)
            _silence(module.last_layer())
    if unet.frame_stride_embedding is not None:
        unet.frame_stride_embedding.linear_2.reset_parameters()

    assert unet.conv_in.bias is not None and unet.conv_out.bias is not None
    unet.conv_in.weight[:latents] = 0
    unet.conv_in.bias[:latents] = 0
    for channel in range(latents):
        unet.conv_in.weight[channel, channel, 1, 1] = 1
    # The last layer of the last block takes conv_in's output as its skip, after the `width` channels from below.
    last_block = cast(UpBlock, unet.up_blocks[-1])
    shortcut = cast(SpatialResnet, last_block.resnets[-1]).conv_shortcut
    assert shortcut is not None and shortcut.bias is not None
    shortcut.weight[: latents * size] = 0
    shortcut.bias[: latents * size] = 0
    for channel in range(latents):
        first = channel * size
        shortcut.weight[first, width + channel], shortcut.weight[first + 1, width + channel] = 1, -1
        for k in range(2, size):
            shortcut.bias[first + k] = _CONSTANT if k % 2 == 0 else -_CONSTANT
    # The norm divides by the group's spread, noise of variance 1 included; silu(a) - silu(-a) = a.
    spread = ((2 + (size - 2) * _CONSTANT**2) / size) ** 0.5
    unet.conv_out.weight.mul_(0.1)
    unet.conv_out.weight[:, : latents * size] = 0
    nn.init.zeros_(unet.conv_out.bias)
    for channel in range(latents):
        first = channel * size
        unet.conv_out.weight[channel, first, 1, 1], unet.conv_out.weight[channel, first + 1, 1, 1] = spread, -spread


def _silence(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
