"""Which channel of the trunk holds what at the finest level, and the rules of laying layers out.

A pair of units with opposite signs passes a channel on through an activation without loss: silu(a) - silu(-a) = a and
gelu(a) - gelu(-a) = a. So no layer needs an offset, and half precision holds them all.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

LATENT = slice(0, 4)
"""The latents, at the end the predicted noise, times :data:`LATENT_SCALE`."""
# Channels 4 to 7 mirror the latents, 39 to 63 mirror channels 10 to 34: see mirror().
CONSTANTS = (8, 9)
"""TRUNK_CONSTANT and its negative: beside it all else is small, so that norms have nearly the same scale everywhere."""
STRIDE, GAIN, LEVEL, TIME = 10, 11, 12, 13
"""(stride - 3) / 2; the gain less 1, over its largest; sqrt(abar); the frame's number over that of the last."""
MOTION = slice(14, 18)
"""Camera code x TIME x stride / 5."""
WARPED = slice(18, 22)
"""The first frame's latents from where each position comes from, times sqrt(abar)."""
PLACE, SOURCE = slice(22, 24), slice(24, 26)
"""Right and down, -1 to 1 from edge to edge: of the position, and of where its content was in the first frame."""
CODE = slice(26, 34)
"""SOURCE as cosines and sines, for the comparison with keys."""
OTHER = 34
"""0 in the first frame, 1 in the others."""
ZERO = 35
"""Holds nothing: after a norm it shows the mean that it took away from all."""
CHANNELS = 64

LATENT_SCALE = 0.5
TRUNK_CONSTANT, TOKEN_CONSTANT = 16.0, 16.0
GATE_START = 0.5
TOKENS_USED, TOKEN_ZERO = 32, 31
"""Tokens laid out by a start, the first two constants; the last of them holds nothing."""


def silence(layer: nn.Module) -> None:
    """Set a layer to zero: its branch adds nothing until it has learnt something."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def mirror(channel: int) -> int:
    """The channel that holds the negative of a channel, so that the mean of all stays 0 whatever they hold."""
    return channel + (4 if channel < LATENT.stop else 29)


def write(weight: Tensor, channel: int, column: int | tuple[int, ...], value: float) -> None:
    """Let a layer add `value` times one of its inputs to a trunk channel, and the negative to its mirror."""
    taps = (column,) if isinstance(column, int) else column
    for row, sign in ((channel, 1.0), (mirror(channel), -1.0)):
        place = (row, *taps)
        weight[place] = sign * value


def read(row: Tensor, channel: int, zero: int, factor: float = 1.0) -> None:
    """Make a row of weights read a channel after a norm, less the mean that the norm took away."""
    row[channel] += factor
    row[zero] -= factor


def lay_out_tokens(transformer: Any, layout: dict[int, tuple[int, float]]) -> None:
    """Fill tokens: {token channel: (trunk channel, factor)}, constants at 0 and 1, little of anything beyond
    :data:`TOKENS_USED`; the block's branches are silent.
    """
    proj = transformer.proj_in
    proj.weight.mul_(0.02)
    proj.bias.mul_(0.02)
    proj.weight[:TOKENS_USED] = 0
    proj.bias[:TOKENS_USED] = 0
    proj.bias[0], proj.bias[1] = TOKEN_CONSTANT, -TOKEN_CONSTANT
    for token, (trunk, factor) in layout.items():
        read(proj.weight[token], trunk, ZERO, factor)
    block = transformer.transformer_blocks[0]
    for layer in (block.attn1.to_out[0], block.attn2.to_out[0], block.ff.net[2]):
        silence(layer)


def paired(channels: dict[int, float], first: int = 2) -> dict[int, tuple[int, float]]:
    """A layout of tokens from `first` on: each trunk channel times its factor, then the negatives, whose sum is 0."""
    both = [*channels.items(), *((channel, -factor) for channel, factor in channels.items())]
    return {first + k: entry for k, entry in enumerate(both)}


def set_product(
    block: Any, unit: int, value: tuple[int, float], gate: tuple[int, float, float], targets: dict[int, float]
) -> None:
    """Two feed-forward units, 2 unit and 2 unit + 1, whose difference is value * gate, exactly.

    Args:
        block: a transformer block.
        unit: number of the product.
        value: token channel and factor.
        gate: token channel, factor and constant.
        targets: {token channel that the product is added to: factor}.
    """
    proj, last = block.ff.net[0].proj, block.ff.net[2]
    inner = proj.weight.shape[0] // 2
    for row, sign in ((2 * unit, 1.0), (2 * unit + 1, -1.0)):
        for place in (row, inner + row):
            proj.weight[place] = 0
            proj.bias[place] = 0
        read(proj.weight[row], value[0], TOKEN_ZERO, value[1])
        read(proj.weight[inner + row], gate[0], TOKEN_ZERO, sign * gate[1])
        proj.bias[inner + row] = sign * gate[2]
        for token, factor in targets.items():
            last.weight[token, row] = sign * factor
