"""The U-Net, set by formulas and least squares: a video is its first frame seen through a view that the text moves.

Every latent channel is one sample of an 8x8 block of pixels (:mod:`.vae`), so moving the picture means fetching blocks
and resampling inside them. The layers of the finest level share the work, in the order of a forward:

* ``down.0.resnets.0``: channels that follow timestep and stride. ``down.0.tempo_attns.0``: rotary text attention counts
  frames; its feed-forward gives MOTION = camera code x time x stride. ``down.0.tempo_attns.1``: what a growth or a turn
  of that size means for a view (VIEW).
* coarse levels: a linear ramp over the frame (PLACE), exact, from the zero padding of their convolutions.
* ``up.3.attentions.0``: how far away each block's content is (SHIFT). ``up.3.tempo_attns.0``: that place as a code.
* ``up.3.attentions.1`` resamples the first frame along rows, ``.2`` the result along columns: attention fetches the
  three nearest blocks, the feed-forward shifts by the rest, with weights fitted on photos.
* ``up.3.tempo_attns.2``: the noise that stands between this picture and the noisy latents.

All other branches are silent: their last layer is zero. Constants beside which all else is small make the norms pass
their input on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ....export.unet import VideoUNet
from ....export.unet.gate import GatedResidual
from ....export.unet.resnets import SpatialResnet
from ....export.unet.transformers import SpatialTransformer
from .layer import FRAMES, WIDTH
from .levels import schedule, set_levels, set_trunk
from .motion import set_code, set_motion, set_shift, set_view
from .norms import Run, pass_on, silence
from .resample import set_noise, set_pass
from .text import BEGIN, END, TEXT_WIDTH
from .vae import CHANNELS, GRID

CONFIG: dict[str, Any] = {
    "sample_size": GRID,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "block_out_channels": [WIDTH, 32, 32, 32],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "attention_head_dim": [4, 1, 1, 1],
    "layers_per_block": 2,
    "norm_num_groups": 1,
    "cross_attention_dim": TEXT_WIDTH,
    "n_temp_heads": 2,
    "n_frames": FRAMES,
    "augment_temporal_attention": True,
    "temp_pos_embedding": "rotary",
    "use_frame_stride_condition": True,
}


class Clips(NamedTuple):
    """Camera moves over photos, as latents."""

    latents: Tensor
    """float [n, 16, c, h, w]."""
    rows: Tensor
    """The same, moved along rows only: the first of the two resamplings."""
    weights: Tensor
    """How much each part counts; like `latents`."""
    codes: Tensor
    """float [n, 4], see :data:`.moves.MOVES`."""
    strides: Tensor
    """int64 [n]."""


@torch.no_grad()
def build_unet(data: list[Clips]) -> VideoUNet:
    """The finished U-Net; norms are measured on the first batch, the resampling is fitted on all."""
    torch.manual_seed(0)
    unet = VideoUNet.from_config(CONFIG)
    modules: Any = unet
    for module in unet.modules():
        if isinstance(module, SpatialResnet):
            silence(module.conv2)
        elif isinstance(module, SpatialTransformer):
            silence(module.proj_out)
        elif isinstance(module, GatedResidual):
            nn.init.zeros_(module.alpha)
            silence(module.last_layer())
    for block in (modules.down_blocks[0], modules.up_blocks[3]):
        # Closed: the export leaves out what is silent where it is costly.
        for layer in (*block.conv3ds, *block.tempo_attns):
            nn.init.ones_(layer.alpha)
    modules.frame_stride_embedding.linear_2.reset_parameters()
    run = _passes(unet, data)
    down, up = modules.down_blocks[0], modules.up_blocks[3]
    set_trunk(modules)
    set_levels(modules, down.resnets[0], run)
    set_motion(down.tempo_attns[0], run)
    set_view(down.tempo_attns[1], run)
    set_shift(up.attentions[0], run)
    set_code(up.tempo_attns[0], run)
    weights = torch.cat([batch.weights.flatten(0, 1) for batch in data])
    for axis in (0, 1):
        target = torch.cat([(batch.latents if axis else batch.rows).flatten(0, 1) for batch in data])
        set_pass(up.attentions[1 + axis], axis, run, target, weights)
    set_noise(up.tempo_attns[2], run)
    pass_on(modules.conv_norm_out, run)
    return unet.eval().requires_grad_(False)


def text_of(codes: Tensor) -> Tensor:
    """Text states that say a camera code [n, 4] as the text encoder does: float [n, 77, width]."""
    text = torch.zeros(len(codes), 77, TEXT_WIDTH)
    text[:, 0, BEGIN] = text[:, 4, END] = 1
    text[:, 4, :4] = codes
    return text


def _passes(unet: VideoUNet, data: list[Clips]) -> Run:
    abar = schedule()
    generator = torch.Generator().manual_seed(0)

    def one(latents: Tensor, codes: Tensor, strides: Tensor) -> Callable[[], Any]:
        clean, times = latents.transpose(1, 2), torch.linspace(60, 940, len(latents)).long()
        level = abar[times].view(-1, 1, 1, 1, 1)
        noise = torch.randn(clean[:, :, 1:].shape, generator=generator)
        noisy = level.sqrt() * clean[:, :, 1:] + (1 - level).sqrt() * noise
        return lambda: unet(noisy, times, text_of(codes), clean[:, :, :1], strides)

    return [one(batch.latents, batch.codes, batch.strides) for batch in data]
