"""Spatial and temporal transformers: GroupNorm, linear in, one block (self-attention, text attention, feed-forward),
linear out.
"""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Attention, FirstFrameSelfAttention, KeyValue, TextAttention, WindowedTemporalAttention
from .config import UNetConfig
from .gate import GatedResidual
from .positions import RotaryPositions, SinusoidalPositions


class GEGLU(nn.Module):
    """``u * gelu(g)`` with [u, g] the halves of one linear layer (Shazeer 2020, arXiv:2002.05202); exact (erf) GELU."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU to four times the width and back. The identity stands where training has dropout: it keeps the key
    numbers.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class TransformerBlock(nn.Module):
    """``x += attn1(LN1 x); x += attn2(LN2 x, text); x += FF(LN3 x)``."""

    def __init__(self, channels: int, attn1: Attention, attn2: TextAttention) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = attn1
        self.norm2 = nn.LayerNorm(channels)
        # Replaced, or None, where the text attention was simplified for export.
        self.attn2: nn.Module | None = attn2
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor, key_value: KeyValue | None, *attn1_args: int) -> Tensor:
        x = x + self.attn1(self.norm1(x), *attn1_args)
        if self.attn2 is not None:
            x = x + self.attn2(self.norm2(x), key_value)
        out: Tensor = x + self.ff(self.norm3(x))
        return out


class SpatialTransformer(nn.Module):
    """Per-frame transformer in which every frame also attends to the first frame."""

    def __init__(self, config: UNetConfig, channels: int, heads: int) -> None:
        super().__init__()
        self.n_frames = config.n_frames
        self.norm = nn.GroupNorm(config.norm_num_groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        block = TransformerBlock(
            channels,
            FirstFrameSelfAttention(channels, heads, channels),
            TextAttention(channels, heads, config.cross_attention_dim),
        )
        self.transformer_blocks = nn.ModuleList([block])
        self.proj_out = nn.Linear(channels, channels)

    @property
    def text_attention(self) -> TextAttention | None:
        return cast(TextAttention | None, self.transformer_blocks[0].attn2)

    def forward(self, x: Tensor, key_value: KeyValue) -> Tensor:
        """[(b f), c, h, w] -> same."""
        tokens = self.proj_in(to_tokens(self.norm(x), self.n_frames))
        tokens = self.transformer_blocks[0](tokens, key_value)
        return x + from_tokens(self.proj_out(tokens), x)


class TemporalTransformer(GatedResidual):
    """Gated transformer along the frames of each position."""

    def __init__(self, config: UNetConfig, channels: int) -> None:
        super().__init__()
        self.n_frames = config.n_frames
        heads = config.n_temp_heads
        positions = RotaryPositions if config.temp_pos_embedding == "rotary" else SinusoidalPositions
        self.norm = nn.GroupNorm(config.norm_num_groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        block = TransformerBlock(
            channels,
            WindowedTemporalAttention(channels, heads, positions(channels), config.augment_temporal_attention),
            TextAttention(channels, heads, config.cross_attention_dim, positions(channels), n_frames=config.n_frames),
        )
        self.transformer_blocks = nn.ModuleList([block])
        self.proj_out = nn.Linear(channels, channels)

    @property
    def text_attention(self) -> TextAttention | None:
        return cast(TextAttention | None, self.transformer_blocks[0].attn2)

    def last_layer(self) -> nn.Linear:
        return self.proj_out

    def forward(self, x: Tensor, key_value: KeyValue | None) -> Tensor:
        """[(b f), c, h, w] -> same; key_value is None where the gate dropped the layer or it reads no text."""
        if self.is_identity:
            return x
        tokens = self.proj_in(to_tokens(self.norm(x), self.n_frames))
        tokens = self.transformer_blocks[0](tokens, key_value, x.shape[2], x.shape[3])
        return self.add_branch(x, from_tokens(self.proj_out(tokens), x))


def to_tokens(x: Tensor, frames: int) -> Tensor:
    """[(b f), c, h, w] -> [b, f, h*w, c]."""
    return x.flatten(2).transpose(1, 2).unflatten(0, (-1, frames))


def from_tokens(tokens: Tensor, like: Tensor) -> Tensor:
    """[b, f, h*w, c] -> the shape of `like`, [(b f), c, h, w]."""
    return tokens.flatten(0, 1).transpose(1, 2).reshape(like.shape)
