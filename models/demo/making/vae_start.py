"""A start for the autoencoder that already works: block averages down, bilinear interpolation up.

Random weights need many thousand steps before colours appear. Here the encoder begins as (and, in the cpu preset,
stays) a linear map: each latent position holds the mean colour of its block of pixels, as luma and two chroma
differences, and the luma difference of its upper left and lower right quarters (of the single differences the one that
a linear decoder gains most from, 1.7 dB, and the same in both directions). Such latents are a small picture, so what
moves in the video moves in them. The decoder begins as interpolation of that picture; training adds the detail.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

# Rows: luma, red-blue, green-magenta; the chroma rows are enlarged to about the spread of luma.
_TO_LATENT = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [1.25, 0.0, -1.25], [-1.35, 2.7, -1.35]])
_DETAIL_GAIN = 3.0
# Constant channels in every norm group keep its statistics, and so its scale, the same for every picture.
_CONSTANT = 4.0
_LOG_VARIANCE, _LOG_VARIANCE_SLOPE = -8.0, 0.1
_BILINEAR = torch.tensor([0.25, 0.5, 0.25])


@torch.no_grad()
def start_as_interpolation(vae: AutoencoderKL) -> None:
    """Set the weights as the module's text says, in place.

    Args:
        vae: 4 latent channels, norm groups of at least 4 channels and at least 4 groups at every level.
    """
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
    for block in (vae.encoder.mid_block, vae.decoder.mid_block):
        nn.init.zeros_(block.attentions[0].to_out[0].weight)
        nn.init.zeros_(block.attentions[0].to_out[0].bias)
    groups = vae.config.norm_num_groups
    _start_encoder(vae, groups)
    _start_decoder(vae, groups)


def _start_encoder(vae: AutoencoderKL, groups: int) -> None:
    encoder = vae.encoder
    _only(encoder.conv_in, {(i, j): _centre(float(_TO_LATENT[i, j])) for i in range(3) for j in range(3)}, rows=3)
    average = torch.zeros(3, 3)
    average[:2, :2] = 0.25
    diagonal = torch.zeros(3, 3)
    diagonal[0, 0], diagonal[1, 1] = _DETAIL_GAIN, -_DETAIL_GAIN
    blocks = list(encoder.down_blocks)
    last = len(blocks) - 1
    for level, block in enumerate(blocks):
        for resnet in block.resnets:
            if resnet.conv_shortcut is not None and level < last:
                _only(resnet.conv_shortcut, {(i, i): torch.ones(1, 1) for i in range(4)}, rows=4)
        if block.downsamplers is not None:
            taps = {(i, i): average for i in range(3)}
            if level == last - 1:
                taps[3, 0] = diagonal
            _only(block.downsamplers[0].conv, taps, rows=4)
    width = encoder.conv_norm_out.num_channels
    size = width // groups
    spread = _spread_with_constants(encoder.down_blocks[last].resnets[0], 4, size)
    out = encoder.conv_out
    nn.init.zeros_(out.weight)
    nn.init.zeros_(out.bias)
    for g in range(4):
        out.weight[g, g * size, 1, 1], out.weight[g, g * size + 1, 1, 1] = spread, -spread
        # A variance that varies a little with the latent: a constant output looks like damage to the export.
        out.weight[4 + g] = _LOG_VARIANCE_SLOPE * out.weight[g]
        out.bias[4 + g] = _LOG_VARIANCE
    _identity(vae.quant_conv)


def _start_decoder(vae: AutoencoderKL, groups: int) -> None:
    decoder = vae.decoder
    _identity(vae.post_quant_conv)
    inverse = torch.linalg.inv(_TO_LATENT)
    taps = {(i, j): _centre(float(inverse[i, j])) for i in range(3) for j in range(3)}
    taps[3, 3] = _centre(1.0)
    _only(decoder.conv_in, taps, rows=4)
    smooth = _BILINEAR[:, None] * _BILINEAR[None, :]
    last = len(decoder.up_blocks) - 1
    for level, block in enumerate(decoder.up_blocks):
        for resnet in block.resnets:
            if resnet.conv_shortcut is not None and level < last:
                _only(resnet.conv_shortcut, {(i, i): torch.ones(1, 1) for i in range(4)}, rows=4)
        if block.upsamplers is not None:
            _only(block.upsamplers[0].conv, {(i, i): smooth for i in range(4)}, rows=4)
    width = decoder.conv_norm_out.num_channels
    size = width // groups
    spread = _spread_with_constants(decoder.up_blocks[last].resnets[0], 3, size)
    out = decoder.conv_out
    out.weight.mul_(0.1)
    nn.init.zeros_(out.bias)
    out.weight[:, : 3 * size] = 0
    for g in range(3):
        out.weight[g, g * size, 1, 1], out.weight[g, g * size + 1, 1, 1] = spread, -spread


def _spread_with_constants(resnet: ResnetBlock2D, count: int, size: int) -> float:
    """Lay out the first `count` channels as norm groups (x, -x, K, -K, ...); the factor that undoes the norm.

    silu(a) - silu(-a) = a, so the pair passes norm and activation unchanged but for that factor. Where the level does
    not widen there is no 1x1 convolution to do it: then the last convolution of the trunk before it must have it.
    """
    shortcut = resnet.conv_shortcut
    if shortcut is None:
        raise ValueError("the last level of the autoencoder must change its width: give it another one.")
    nn.init.zeros_(shortcut.bias)
    shortcut.weight[: count * size] = 0
    for g in range(count):
        shortcut.weight[g * size, g], shortcut.weight[g * size + 1, g] = 1.0, -1.0
        for k in range(2, size):
            shortcut.bias[g * size + k] = _CONSTANT if k % 2 == 0 else -_CONSTANT
    return float(_CONSTANT * ((size - 2) / size) ** 0.5)


def _only(conv: nn.Conv2d, taps: dict[tuple[int, int], Tensor], rows: int) -> None:
    """Make the first `rows` output channels exactly the given kernels; the others keep their random start."""
    conv.weight[:rows] = 0
    assert conv.bias is not None
    conv.bias[:rows] = 0
    for (out, channel), kernel in taps.items():
        conv.weight[out, channel] = kernel


def _centre(value: float) -> Tensor:
    kernel = torch.zeros(3, 3)
    kernel[1, 1] = value
    return kernel


def _identity(conv: nn.Conv2d) -> None:
    nn.init.dirac_(conv.weight)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
