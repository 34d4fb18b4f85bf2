"""A start for the U-Net that already moves the first frame as the text says; training goes on from there.

On a processor a few thousand small batches can be had, far too few to find out from random weights that a video is its
first frame seen through a moving view. So that much is put into the start, with the layers that the architecture has
for it:

* ``down_blocks.0``: the resnet turns timestep and stride into channels (:mod:`.levels`); the temporal text attention,
  whose queries turn with the frame's position, makes "camera code times frame number"; its feed-forward multiplies by
  the stride (:mod:`.motion`).
* level 1: convolutions find the position in the frame from the zeros around it (:mod:`.positions`).
* ``up_blocks.1`` (the finest), layer 0: a feed-forward finds where each position's content comes from (:mod:`.motion`),
  the next writes that place as cosines and sines. Layer 1: spatial attention looks at that place in the FIRST frame
  (:mod:`.look`); the last feed-forward composes the noise (:mod:`.levels`).

All other branches are silent (their last layer is zero) and learn from there. The norms in between are set so that they
pass these few channels unchanged: constant channels fix their scale (:mod:`.norms`).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from .....export.unet import VideoUNet
from .....export.unet.blocks import DownBlock, UpBlock
from .....export.unet.gate import GatedResidual
from .....export.unet.resnets import SpatialResnet
from .....export.unet.transformers import SpatialTransformer, TemporalTransformer
from .channels import CHANNELS, GATE_START, TRUNK_CONSTANT, silence
from .levels import compose_noise, set_levels
from .look import look_at_first_frame, write_code
from .motion import set_motion, set_source
from .norms import set_norms
from .positions import learn_positions
from .trunk import set_trunk

__all__ = ["start_as_camera"]


@torch.no_grad()
def start_as_camera(unet: VideoUNet, clips: Tensor) -> None:
    """Set the weights as the module's text says, in place; gates half open, the stride embedding live.

    Args:
        unet: two levels, one layer a block, attention at both, one norm group, one spatial head at the finest level,
            four latent channels, 16 frames or so, at least 64 channels (see :func:`..presets.Preset.unet_config`).
        clips: some scaled latents, float [n, f, 4, h, w], to set the norms by.

    Raises:
        ValueError: the U-Net is built otherwise.
    """
    config = unet.config
    width = config.block_out_channels[0]
    if config.norm_num_groups != 1 or config.levels != 2 or config.layers_per_block != 1 or width < CHANNELS:
        raise ValueError("the camera start needs two levels of one layer, one norm group and at least 64 channels.")
    if config.attention_head_dim[0] != 1 or config.in_channels != 4:
        raise ValueError("the camera start needs one spatial head at the finest level and 4 latent channels.")
    for module in unet.modules():
        if isinstance(module, SpatialResnet):
            silence(module.conv2)
        elif isinstance(module, SpatialTransformer):
            silence(module.proj_out)
        elif isinstance(module, GatedResidual):
            nn.init.constant_(module.alpha, GATE_START)
            silence(module.last_layer())
    assert unet.frame_stride_embedding is not None
    unet.frame_stride_embedding.linear_2.reset_parameters()
    down, up = cast(DownBlock, unet.down_blocks[0]), cast(UpBlock, unet.up_blocks[1])
    size = clips.shape[-1]
    set_trunk(unet, up, width)
    set_levels(unet, cast(SpatialResnet, down.resnets[0]))
    set_motion(cast(TemporalTransformer, down.tempo_attns[0]), config.n_frames)
    learn_positions(unet, size, TRUNK_CONSTANT)
    set_source(cast(SpatialTransformer, up.attentions[0]))
    write_code(cast(TemporalTransformer, up.tempo_attns[0]), size)
    look_at_first_frame(cast(SpatialTransformer, up.attentions[1]), size)
    compose_noise(cast(TemporalTransformer, up.tempo_attns[1]))
    set_norms(unet, clips, down, up)
