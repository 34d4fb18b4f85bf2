"""The autoencoder, set by formulas: each latent channel is one sample of an 8x8 block of pixels.

Luma is averaged over 2x2 pixels, chroma over 4x4; strided convolutions then move the samples of a block into channels.
A decoder of nearest-neighbour upsampling and convolutions cannot undo that by itself: all it sees of a block's two
halves are two equal pixels. So its coarse level counts positions, from the zero padding of its convolutions;
differences of that ramp tell even from odd pixels, and an activation selects each one's channel. Last comes an
interpolation whose kernel is fitted on photos. Constants beside which all else is small make norms pass their input on.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from .norms import Run, pass_on, silence

SIZE, GRID = 128, 16
"""Pixels and latent positions of a side."""
LUMA, CHROMA = 4, 2
"""Samples of luma and of each chroma along the side of a block."""
CHANNELS = LUMA**2 + 2 * CHROMA**2
SCALING = 2.0
"""The published ``scaling_factor``: luma spreads by about 1 with it."""
CHROMA_GAIN = 2.0
TO_YCC = torch.tensor([[0.299, 0.587, 0.114], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]])
_CONSTANT, _STEP = 256.0, 16.0
"""Beside which all else is small; a step of the ramp."""
_SAMPLE, _PARITY, _DOWN = 8.0, 16.0, 18.0
"""Of the selection: silu(8 x + 16 a + 16 b - 18), where a and b are 1 at the pixels that want the sample x, else -1."""
_CHROMA_KERNEL = torch.tensor([0.15, 0.7, 0.15])
_LOG_VARIANCE, _LOG_VARIANCE_SLOPE = -12.0, 0.1
_WIDTHS = (16, 16, 32, 64)
# Carriers in the directions right, left, down, up; ramps; constants. Before them content and its negative.
_CARRIERS, _RAMPS, _CONSTANTS = 2 * CHANNELS, 2 * CHANNELS + 4, (2 * CHANNELS + 6, 2 * CHANNELS + 7)


def latents_of(pictures: Tensor) -> Tensor:
    """What the encoder makes of pictures float [n, 3, 128, 128] in [-1, 1], scaled: [n, 24, 16, 16]."""
    ycc = torch.einsum("ij,njhw->nihw", TO_YCC, pictures)
    luma = F.pixel_unshuffle(F.avg_pool2d(ycc[:, :1], 2), LUMA)
    chroma = F.pixel_unshuffle(F.avg_pool2d(ycc[:, 1:], 4), CHROMA)
    return SCALING * torch.cat([luma, CHROMA_GAIN * chroma], 1)


@torch.no_grad()
def build_vae(pictures: Tensor) -> AutoencoderKL:
    """The finished autoencoder.

    Args:
        pictures: float [n, 3, 128, 128] in [-1, 1], on which norms are measured and the interpolation is fitted.
    """
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=list(_WIDTHS),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=1,
        sample_size=SIZE,
        scaling_factor=SCALING,
    ).eval()
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            silence(module.conv2)
            if module.conv_shortcut is not None:
                silence(module.conv_shortcut)
    for block in (vae.encoder.mid_block, vae.decoder.mid_block):
        silence(block.attentions[0].to_out[0])
    for conv in (vae.quant_conv, vae.post_quant_conv):
        silence(conv)
        nn.init.dirac_(conv.weight)
    few = pictures[:8]
    _set_encoder(vae.encoder, [lambda: vae.encoder(few)])
    _set_decoder(vae.decoder, [lambda: vae.decoder(latents_of(few) / SCALING)], fitted_interpolation(pictures))
    return vae.requires_grad_(False)


def _set_encoder(encoder: Any, run: Run) -> None:
    convs = [encoder.conv_in, *(block.downsamplers[0].conv for block in encoder.down_blocks[:3])]
    for conv in convs:
        silence(conv)
    encoder.conv_in.weight[:3, :, 1, 1] = TO_YCC
    nn.init.dirac_(encoder.down_blocks[2].resnets[0].conv_shortcut.weight)
    for c in range(3):
        convs[1].weight[c, c, :2, :2] = 0.25
    # Luma to 2x2 samples, chroma averaged: channels 0 to 3, 4 and 5. Then luma to 4x4, chroma to 2x2 samples.
    convs[2].weight[:4, 0, :2, :2] = torch.eye(4).view(4, 2, 2)
    convs[2].weight[4, 1, :2, :2] = convs[2].weight[5, 2, :2, :2] = 0.25
    same = torch.eye(2)
    split = torch.einsum("ix,ay,jz,bw->iajbywxz", same, same, same, same).reshape(LUMA**2, 4, 2, 2)
    convs[3].weight[: LUMA**2, :4, :2, :2] = split
    for plane, channels in enumerate(torch.arange(LUMA**2, CHANNELS).view(2, -1)):
        convs[3].weight[channels, 4 + plane, :2, :2] = CHROMA_GAIN * torch.eye(4).view(4, 2, 2)
    last = encoder.down_blocks[3].resnets[0].conv_shortcut
    silence(encoder.conv_out)
    for c in range(CHANNELS):
        for row, sign in ((c, 1.0), (CHANNELS + c, -1.0)):
            last.weight[row, c] = sign
            encoder.conv_out.weight[c, row, 1, 1] = sign
    last.bias[list(_CONSTANTS)] = torch.tensor([_CONSTANT, -_CONSTANT])
    # A variance that varies a little with the latent: a constant output looks like damage to the export.
    encoder.conv_out.weight[CHANNELS:] = _LOG_VARIANCE_SLOPE * encoder.conv_out.weight[:CHANNELS]
    encoder.conv_out.bias[CHANNELS:] = _LOG_VARIANCE
    pass_on(encoder.conv_norm_out, run)


def _set_decoder(decoder: Any, run: Run, kernels: tuple[Tensor, Tensor]) -> None:
    blocks = decoder.up_blocks
    upsamplers = [block.upsamplers[0].conv for block in blocks[:3]]
    for conv in (decoder.conv_in, decoder.conv_out, *upsamplers):
        silence(conv)
    for c in range(CHANNELS):
        decoder.conv_in.weight[c, c, 1, 1], decoder.conv_in.weight[CHANNELS + c, c, 1, 1] = 1, -1
    bias = decoder.conv_in.bias
    bias[_CARRIERS : _CARRIERS + 4] = _STEP
    bias[_RAMPS : _RAMPS + 2] = GRID / 2
    bias[list(_CONSTANTS)] = torch.tensor([_CONSTANT, -_CONSTANT])
    counting = [*decoder.mid_block.resnets, *blocks[0].resnets]
    for resnet in counting:
        _count(resnet, run, last=resnet is counting[-1])
    # 16 -> 32 positions: 24 channels to 6, luma 2x2 and chroma.
    groups = [[LUMA * (2 * i + a) + 2 * j + b for i in (0, 1) for j in (0, 1)] for a in (0, 1) for b in (0, 1)]
    groups += [[LUMA**2 + CHROMA**2 * plane + k for k in range(4)] for plane in (0, 1)]
    _split(upsamplers[0], groups, _RAMPS, _CARRIERS, _CONSTANTS)
    for axis in (0, 1):
        # The ramp of the finer level: 2 p for odd pixels, 2 p - 1 for even ones.
        taps = upsamplers[0].weight[_RAMPS + axis, _RAMPS + axis]
        taps[1, 1] += 1
        taps[(1, 0) if axis == 0 else (0, 1)] += 1
    kept = dict(zip((_RAMPS, _RAMPS + 1, *_CONSTANTS), range(12, 16), strict=True))
    _select(blocks[1].resnets[0], groups, _CARRIERS, run, kept)
    # 32 -> 64: four channels of luma to one; chroma is interpolated.
    _split(upsamplers[1], [[0, 1, 2, 3]], 12, 16, (14, 15))
    for row, plane, sign in ((8, 4, 1.0), (9, 5, 1.0), (10, 4, -1.0), (11, 5, -1.0)):
        upsamplers[1].weight[row, plane] = sign * torch.outer(_CHROMA_KERNEL, _CHROMA_KERNEL) / CHROMA_GAIN
    _select(blocks[2].resnets[0], [[0, 1, 2, 3]], 16, run, {8: 2, 9: 3, 10: 4, 11: 5, 14: 6, 15: 7})
    # 64 -> 128: planes 0, 2 and 3, their negatives 1, 4 and 5.
    for row, sign in ((0, 1.0), (1, -1.0)):
        upsamplers[2].weight[row, 0] = sign * torch.outer(kernels[0], kernels[0])
    for row in range(2, 6):
        upsamplers[2].weight[row, row] = torch.outer(kernels[0], kernels[0])
    for row in (6, 7):
        upsamplers[2].weight[row, row, 1, 1] = 1
    pass_on(decoder.conv_norm_out, run)
    back = torch.linalg.inv(TO_YCC)
    for colour in range(3):
        for plane, (up, down) in enumerate(((0, 1), (2, 4), (3, 5))):
            kernel = back[colour, plane] * torch.outer(kernels[1], kernels[1])
            decoder.conv_out.weight[colour, up], decoder.conv_out.weight[colour, down] = kernel, -kernel


def _count(resnet: Any, run: Run, last: bool) -> None:
    """Two steps of a ramp: each convolution moves the carriers by one position, and the padding's zeros come in.

    Summed up they are 1, 2, ... 16 along either axis: eight steps from the near side less seven from the far one.
    """
    pass_on(resnet.norm1, run)
    for conv in (resnet.conv1, resnet.conv2):
        silence(conv)
    undo = float(_STEP / F.silu(torch.tensor(_STEP)))
    taps = ((1, 0), (1, 2), (0, 1), (2, 1))
    for d, tap in enumerate(taps):
        resnet.conv1.weight[d, _CARRIERS + d][tap] = undo
        resnet.conv1.weight[4 + d, _CARRIERS + d, 1, 1] = undo
        resnet.conv2.weight[_CARRIERS + d, d][tap] = undo
        resnet.conv2.weight[_CARRIERS + d, 4 + d, 1, 1] = -undo
        ramp, share = resnet.conv2.weight[_RAMPS + d // 2, d], undo / _STEP
        ramp[1, 1] += share if d % 2 == 0 else -share
        if d % 2 == 0 or not last:
            ramp[tap] += share if d % 2 == 0 else -share
    resnet.conv1.bias[8:10] = torch.tensor([_CONSTANT, -_CONSTANT])
    pass_on(resnet.norm2, run)


def _split(conv: Any, groups: list[list[int]], ramps: int, blanks: int, constants: tuple[int, int]) -> None:
    """After nearest-neighbour upsampling: each channel, raised where it is wanted and pushed down elsewhere.

    Args:
        conv: of the upsampler.
        groups: four channels each, for the upper left, upper right, lower left and lower right pixel. Their negatives
            follow the last one.
        ramps: the ramp's first channel; it differs from its neighbour to the left by 1 at even pixels, else by 0.
        blanks: where four channels go that are raised and pushed down likewise, with nothing in them.
        constants: kept.
    """
    count = sum(map(len, groups))
    for group in [*groups, list(range(blanks, blanks + 4))]:
        for quarter, c in enumerate(group):
            if group[0] != blanks:
                conv.weight[c, c, 1, 1], conv.weight[count + c, c, 1, 1] = _SAMPLE, -_SAMPLE
            conv.bias[c] = -_DOWN
            for axis, odd in enumerate((quarter % 2, quarter // 2)):
                sign = -_PARITY if odd else _PARITY
                conv.weight[c, ramps + axis, 1, 1] += 2 * sign
                conv.weight[c, ramps + axis][(1, 0) if axis == 0 else (0, 1)] -= 2 * sign
                conv.bias[c] -= sign
    for channel in constants:
        conv.weight[channel, channel, 1, 1] = 1


def _select(resnet: Any, groups: list[list[int]], blanks: int, run: Run, kept: dict[int, int]) -> None:
    """What was split becomes one channel a group, followed by their negatives; of the rest what is kept: {from: to}."""
    pass_on(resnet.norm1, run)
    for conv in (resnet.conv1, resnet.conv2):
        silence(conv)
    count = len(groups)
    for g, group in enumerate(groups):
        for row, sign in ((g, 1.0), (count + g, -1.0)):
            resnet.conv1.weight[row, group, 1, 1] = sign / _SAMPLE
            # Less what the selection alone adds up to.
            resnet.conv1.weight[row, blanks : blanks + 4, 1, 1] = -sign / _SAMPLE
            for target, way in ((g, sign), (count + g, -sign)):
                resnet.conv2.weight[target, row, 1, 1] = way
    resnet.conv1.bias[2 * count : 2 * count + 2] = torch.tensor([_CONSTANT, -_CONSTANT])
    for source, target in kept.items():
        resnet.conv_shortcut.weight[target, source] = 1
    pass_on(resnet.norm2, run)


def fitted_interpolation(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Kernels [3] along an axis, after the last upsampling and at the end.

    Together they are [a, b, c, b, a] on the enlarged picture, by least squares on luma along columns.
    """
    luma = torch.einsum("j,njhw->nhw", TO_YCC[0], pictures)
    large = F.pad(F.avg_pool2d(luma, (1, 2)).repeat_interleave(2, dim=-1), (2, 2), mode="replicate")
    far, near, middle = (large[..., k : k + SIZE] for k in (0, 1, 2))
    design = torch.stack([far + large[..., 4:], near + large[..., 3:-1], middle], -1).flatten(0, 2).double()
    a, b, c = torch.linalg.lstsq(design, luma.flatten()[:, None].double()).solution[:, 0].tolist()
    root = (b**2 - 4 * a * (c - 2 * a)) ** 0.5
    beta = min(((b + sign * root) / (2 * a) for sign in (1, -1)), key=abs)
    first, second = torch.tensor([1.0, beta, 1.0]), torch.tensor([a, b - a * beta, a])
    return first / first.sum(), second * first.sum()
