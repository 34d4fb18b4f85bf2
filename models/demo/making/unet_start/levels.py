"""Noise levels: channels that follow timestep and stride, and the predicted noise composed with them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..moves import STRIDES
from ..noising import schedule
from .channels import (
    GAIN,
    GATE_START,
    LATENT,
    LATENT_SCALE,
    LEVEL,
    STRIDE,
    WARPED,
    ZERO,
    lay_out_tokens,
    read,
    set_product,
    write,
)

_UNCERTAINTY = 0.04
"""Of the first frame seen elsewhere, as a standard deviation of the latents: below this noise the noisy latents
themselves are the better guess."""
_HIDDEN_CONSTANTS, _HIDDEN_CONSTANT = (6, 7), 10.0
_BENDS, _STEEPNESS, _ROUNDING = 24, 2.0, 3e-4
_DIFFERENCE_SCALE = 0.25
# Tokens of the last feed-forward: differences and their negatives, the warped ones and theirs, products.
_DIFFERENCE, _GAIN_TOKEN, _PRODUCT, _WARPED = 2, 10, 11, 15


def gain(abar: Tensor) -> Tensor:
    """Noise per difference: sigma / (sigma^2 + abar u^2) for the difference of noisy latents and sqrt(abar) times
    a guess with standard deviation u; its best linear estimate.
    """
    return (1 - abar).sqrt() / (1 - abar + abar * _UNCERTAINTY**2)


def set_levels(unet: Any, resnet: Any) -> None:
    """Channels STRIDE ((stride - 3) / 2), GAIN ((gain - 1) over its largest) and LEVEL (sqrt(abar)).

    They are fitted to hidden units of the two embeddings that bend at chosen timesteps and strides, stand in the
    embedding as pairs of opposite signs, and pass the resnet as such.
    """
    abar = schedule()
    time = torch.arange(len(abar))
    largest = gain(abar).max() - 1
    wanted = torch.stack([(gain(abar) - 1) / largest, abar.sqrt()], dim=1)
    # By what an error does to the clean latents that it stands for; the noisiest timesteps magnify it most.
    magnified = (1 / abar).clamp(max=600).sqrt()
    importance = torch.stack([magnified * (1 - abar) * largest, magnified], dim=1) + 0.3
    bends = 1000 * (torch.arange(_BENDS) / (_BENDS - 1)) ** 1.7
    _fit_embedding(unet.time_embedding, time, bends, 1000.0, wanted, importance, [0, 1])
    strides = torch.tensor(STRIDES)
    ones = torch.ones(len(STRIDES), 1)
    bends = torch.linspace(0, 8, 9)
    _fit_embedding(unet.frame_stride_embedding, strides, bends, 8.0, (strides[:, None] - 3) / 2, ones, [2])
    # Neither embedding says anything in the other's channels.
    for embedding, pairs in ((unet.time_embedding, [2]), (unet.frame_stride_embedding, [0, 1])):
        for row in (2 * pair + k for pair in pairs for k in (0, 1)):
            embedding.linear_2.weight[row] = 0
            embedding.linear_2.bias[row] = 0
    linear, conv1, conv2 = resnet.time_emb_proj, resnet.conv1, resnet.conv2
    for tensor in (conv1.weight, linear.weight):
        tensor.mul_(0.3)
    for k, channel in enumerate((GAIN, LEVEL, STRIDE)):
        for row, sign in ((2 * k, 1.0), (2 * k + 1, -1.0)):
            for tensor in (conv1.weight, conv1.bias, linear.weight, linear.bias):
                tensor[row] = 0
            linear.weight[row, 2 * k], linear.weight[row, 2 * k + 1] = sign, -sign
            write(conv2.weight, channel, (row, 1, 1), sign)
    for row, sign in zip(_HIDDEN_CONSTANTS, (1.0, -1.0), strict=True):
        for tensor in (conv1.weight, linear.weight, linear.bias):
            tensor[row] = 0
        conv1.bias[row] = sign * _HIDDEN_CONSTANT


def _fit_embedding(
    embedding: Any, values: Tensor, bends: Tensor, end: float, wanted: Tensor, importance: Tensor, pairs: list[int]
) -> None:
    """Make channels 2 pair and 2 pair + 1 of an embedding the wanted functions and their negatives.

    Args:
        embedding: timestep or stride.
        values: [n], what is embedded.
        bends: values at which hidden units silu(steep (bend - value)) bend, in a wave that is nearly straight up to
            `end`.
        wanted, importance: [n, pairs].
    """
    layer, frequencies = embedding.linear_1, torch.tensor(embedding.frequencies)
    wave = int((frequencies - 1 / end).abs().argmin())
    # [cos, sin]: the sine of the slow wave.
    column, frequency = len(frequencies) + wave, float(frequencies[wave])
    gaps = torch.diff(bends, append=bends[-1:] + bends[-1:] - bends[-2:-1])
    for row, (bend, gap) in enumerate(zip(bends.tolist(), gaps.tolist(), strict=True)):
        steep = _STEEPNESS / (frequency * gap)
        layer.weight[row] = 0
        layer.weight[row, column] = -steep
        layer.bias[row] = steep * math.sin(frequency * bend)
    embedding.linear_2.weight[:, : len(bends)] = 0
    features = torch.nn.functional.silu(layer(embedding.sinusoid(values)))[:, : len(bends)]
    design = torch.cat([features, torch.ones(len(features), 1)], dim=1).double()
    for k, pair in enumerate(pairs):
        weighted = design * importance[:, k : k + 1].double()
        noise = torch.diag(_ROUNDING**2 * weighted.pow(2).sum(0))
        target = weighted.T @ (wanted[:, k] * importance[:, k]).double()
        fit = torch.linalg.solve(weighted.T @ weighted + noise, target).float()
        for row, sign in ((2 * pair, 1.0), (2 * pair + 1, -1.0)):
            embedding.linear_2.weight[row] = 0
            embedding.linear_2.weight[row, : len(bends)] = sign * fit[:-1]
            embedding.linear_2.bias[row] = sign * fit[-1]


def compose_noise(transformer: Any) -> None:
    """LATENT becomes gain (x - WARPED), the predicted noise."""
    scale = _DIFFERENCE_SCALE
    lay_out_tokens(transformer, {_GAIN_TOKEN: (GAIN, 1.0)})
    weight = transformer.proj_in.weight
    for c in range(4):
        for sign, difference, warped in (
            (1.0, _DIFFERENCE + c, _WARPED + c),
            (-1.0, _DIFFERENCE + 4 + c, _WARPED + 4 + c),
        ):
            read(weight[difference], LATENT.start + c, ZERO, sign * scale / LATENT_SCALE)
            read(weight[difference], WARPED.start + c, ZERO, -sign * scale)
            read(weight[warped], WARPED.start + c, ZERO, sign * scale)
    block = transformer.transformer_blocks[0]
    largest = float(gain(schedule()).max() - 1)
    # x + (gain - 1) (x - WARPED) - WARPED, of which the trunk holds the first.
    factor = LATENT_SCALE / scale / (1 - GATE_START)
    for c in range(4):
        set_product(block, c, (_DIFFERENCE + c, 1.0), (_GAIN_TOKEN, largest, 0.0), {_PRODUCT + c: 1.0})
        write(transformer.proj_out.weight, LATENT.start + c, _PRODUCT + c, factor)
        write(transformer.proj_out.weight, LATENT.start + c, _WARPED + c, -factor)
