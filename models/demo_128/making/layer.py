"""Channels by name, and one transformer set by formulas: what its tokens hold and its feed-forward computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....export.unet.gate import GatedResidual
from .moves import PAN_SPEED, STRIDES, TURN_SPEED, ZOOM_SPEED
from .norms import Run, pass_on, silence
from .vae import CHANNELS, GRID

FRAMES = 16
WIDTH = 128
At = tuple[str, int]
"""A name of :class:`Slots`, and which of its channels."""


class Slots:
    """Names for runs of channels."""

    def __init__(self, **lengths: int) -> None:
        self._first: dict[str, tuple[int, int]] = {}
        self.used = 0
        for name, length in lengths.items():
            self._first[name] = (self.used, length)
            self.used += length

    def __getitem__(self, key: str | At) -> int:
        name, offset = key if isinstance(key, tuple) else (key, 0)
        first, length = self._first[name]
        assert 0 <= offset < length
        return first + offset

    def all(self, name: str) -> list[int]:
        first, length = self._first[name]
        return list(range(first, first + length))


TRUNK = Slots(
    latent=CHANNELS,  # x LATENT_SCALE; at the end the predicted noise
    mirror=CHANNELS,  # its negative: silu(a) - silu(-a) = a
    warped=CHANNELS,
    key_x=4,
    key_y=4,
    query_x=12,
    query_y=12,
    place=2,  # right and down, in eight blocks
    shift=2,  # from a place to where its content comes from
    motion=4,  # right, down, growth, clockwise turn, x time x stride / 5
    view=5,
    stride=1,
    gain=1,
    pull=1,
    time=1,
    other=1,  # 0 in the first frame, 1 in the others
    constant=2,
    zero=1,  # after a norm it shows the mean that the norm took away from all
)
LATENT_SCALE = 0.5
TRUNK_CONSTANT = TOKEN_CONSTANT = 128.0
REACH = GRID / 2
"""Blocks from the middle to the edge: the unit of place and source."""
_LONGEST = max(STRIDES) * (FRAMES - 1)
PAN, ZOOM, TURN = PAN_SPEED * _LONGEST * GRID / REACH, ZOOM_SPEED * _LONGEST, TURN_SPEED * _LONGEST
"""Of the moved picture, as a standard deviation of latents: below this noise the noisy latents are the better guess."""
CODE = ((4.0, 240.0, 20.0), (32.0, 50.0, 40.0))
"""Periods in blocks of the codes of a place, and what a match adds to the attention's logit, along and across."""
FRAME_LOGIT, FLAG_LOGIT = 24.0, 10.0
"""By which keys of other frames, and words beside a text's first and last token, fall behind."""
HEADS = 3  # of four: the block to the left (above), the nearest one, the one to the right (below)
BEYOND = 1.0
"""Blocks beyond the outermost one's middle to which sources are drawn back: what lies further out is smeared."""


class Layer:
    """One transformer: which trunk channels its tokens hold, its attentions and feed-forward, and what it writes.

    Args:
        transformer: of the finest level; everything in it is set.
        run: forward passes up to here.
        held: token channels by name, each a list of {trunk channel: factor}.
        free: more token channels, 0 at first: {name: length}.
    """

    def __init__(self, transformer: Any, run: Run, held: dict[str, list[dict[int, float]]], **free: int) -> None:
        if isinstance(transformer, GatedResidual):
            nn.init.zeros_(transformer.alpha)
        self.block, self.out, self.run = transformer.transformer_blocks[0], transformer.proj_out, run
        self.at = Slots(constant=2, zero=1, **{name: len(rows) for name, rows in held.items()}, **free)
        self._units = 0
        silence(transformer.proj_in)
        for name, rows in held.items():
            for i, row in enumerate(rows):
                for channel, factor in row.items():
                    transformer.proj_in.weight[self.at[name, i], channel] += factor
                    transformer.proj_in.weight[self.at[name, i], TRUNK["zero"]] -= factor
        transformer.proj_in.bias[:2] = torch.tensor([TOKEN_CONSTANT, -TOKEN_CONSTANT])
        ff = self.block.ff.net
        for layer in (self.block.attn1.to_out[0], self.block.attn2.to_out[0], ff[0].proj, ff[2], self.out):
            silence(layer)
        for norm in (transformer.norm, self.block.norm1):
            pass_on(norm, run)

    @staticmethod
    def empty(attention: Any) -> Any:
        """The attention, with nothing in it yet."""
        for linear in (attention.to_q, attention.to_k, attention.to_v):
            silence(linear)
        return attention

    def attended(self) -> None:
        """To be called when the attentions are set."""
        for norm in (self.block.norm2, self.block.norm3):
            pass_on(norm, self.run)

    def read(self, row: Tensor, factors: dict[At, float]) -> None:
        """Let a row of weights read token channels after a norm, less the mean that the norm took away."""
        for name, factor in factors.items():
            row[self.at[name]] += factor
            row[self.at["zero"]] -= factor

    def constant(self, row: Tensor, value: float) -> None:
        row[self.at["constant"]] += value / TOKEN_CONSTANT

    def unit(
        self, value: dict[At, float] | float, gate: dict[At, float], offset: float, target: At, factor: float
    ) -> None:
        """One feed-forward unit: target += factor x value x gelu(gate + offset)."""
        proj, last = self.block.ff.net[0].proj, self.block.ff.net[2]
        row, self._units = self._units, self._units + 1
        assert row < last.in_features, "the feed-forward has no more units"
        if isinstance(value, float):
            proj.bias[row] = value
        else:
            self.read(proj.weight[row], value)
        self.read(proj.weight[last.in_features + row], gate)
        proj.bias[last.in_features + row] = offset
        last.weight[self.at[target], row] = factor

    def product(self, a: At, b: dict[At, float], target: At, factor: float, offset: float = 0.0) -> None:
        """target += factor x a x (b + offset), exactly: gelu(g) - gelu(-g) = g."""
        for sign in (1.0, -1.0):
            gate = {name: sign * weight for name, weight in b.items()}
            self.unit({a: 1.0}, gate, sign * offset, target, sign * factor)

    def curves(self, source: At, end: float, step: float, wanted: dict[At, Callable[[Tensor], Tensor]]) -> None:
        """targets += functions of a token channel, as least-squares sums of units that bend at every `step`.

        Args:
            source: the channel; what it holds, float64 here, lies between `-end` and `end`.
            end, step: see there.
            wanted: {target: function}.
        """
        bends = torch.arange(-end, end + step / 2, step, dtype=torch.double)
        signs, steep = torch.where(bends < 0, -1.0, 1.0), 2 / step
        x = torch.linspace(-end, end, 20 * len(bends), dtype=torch.double)[:, None]
        design = torch.cat([F.gelu(steep * signs * (x - bends)) / steep, x, torch.ones_like(x)], 1)
        gram = design.T @ design + 1e-7 * len(x) * torch.eye(design.shape[1], dtype=torch.double)
        ys = torch.cat([function(x) for function in wanted.values()], 1)
        fit = torch.linalg.solve(gram, design.T @ ys).float()
        last, rows = self.block.ff.net[2], [self.at[target] for target in wanted]
        for bend, sign, weights in zip(bends.tolist(), signs.tolist(), fit[:-2], strict=True):
            self.unit(1.0, {source: steep * sign}, -steep * sign * bend, next(iter(wanted)), 0.0)
            last.weight[rows, self._units - 1] = weights / steep
        for target, slope in zip(wanted, fit[-2].tolist(), strict=True):
            self.product(source, {}, target, slope / 10, 10.0)
        last.bias[rows] += fit[-1]

    def write(self, channel: int, name: str, i: int, factor: float = 1.0) -> None:
        """Add a token channel to a trunk channel."""
        self.out.weight[channel, self.at[name, i]] += factor
        self.out.weight[channel, self.at["zero"]] -= factor


def plain(name: str) -> list[dict[int, float]]:
    return [{channel: 1.0} for channel in TRUNK.all(name)]
