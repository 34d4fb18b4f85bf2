"""Transformer wrappers: GroupNorm and projections around one block, with a gate for the temporal kind."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Attention, Size, SpatialAttention, TemporalAttention
from .config import UNetConfig
from .resnets import gate


class GEGLU(nn.Module):
    """u * gelu(g) for the halves (u, g) of one projection (https://arxiv.org/abs/2002.05202), exact gelu."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        """(..., channels) -> (..., inner)."""
        value, gating = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gating)


class FeedForward(nn.Module):
    """GEGLU and a linear layer; place 1 of `net` is the original's dropout of 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = 4 * channels
        self.net = nn.Sequential(GEGLU(channels, inner), nn.Identity(), nn.Linear(inner, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(..., channels) -> the same shape."""
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, text cross-attention and feed-forward, each on a LayerNorm and with a residual."""

    def __init__(self, channels: int, attn1: Attention, attn2: Attention) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = attn1
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = attn2
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor, text: Tensor, size: Size) -> Tensor:
        """x (b*f, h*w, c), text (b*f, n, context), size (h, w) -> (b*f, h*w, c)."""
        x = self.attn1(self.norm1(x), None, size) + x
        x = self.attn2(self.norm2(x), text, size) + x
        return self.ff(self.norm3(x)) + x


class Transformer(nn.Module):
    """Image in, image out: per-frame GroupNorm, tokens, one block, residual."""

    def __init__(self, channels: int, groups: int, attn1: Attention, attn2: Attention) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, attn1, attn2)])
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """x (b*f, c, h, w), text (b*f, n, context) -> (b*f, c, h, w)."""
        size = (x.shape[2], x.shape[3])
        h = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))
        h = self.proj_out(self.transformer_blocks[0](h, text, size))
        return h.transpose(1, 2).unflatten(2, size).contiguous() + x


class SpatialTransformer(Transformer):
    """Attention within each frame, with frame 0 beside it."""

    def __init__(self, channels: int, heads: int, config: UNetConfig) -> None:
        attn1 = SpatialAttention(channels, channels, heads, config.n_frames)
        attn2 = SpatialAttention(channels, config.cross_attention_dim, heads, config.n_frames)
        super().__init__(channels, config.norm_num_groups, attn1, attn2)


class TemporalTransformer(Transformer):
    """Attention across frames; the gate mixes the result with the input."""

    def __init__(self, channels: int, config: UNetConfig) -> None:
        heads, frames, kind = config.n_temp_heads, config.n_frames, config.temp_pos_embedding
        window = config.augment_temporal_attention
        attn1 = TemporalAttention(channels, channels, heads, frames, positions=kind, window=window)
        attn2 = TemporalAttention(channels, config.cross_attention_dim, heads, frames, positions=kind, window=False)
        super().__init__(channels, config.norm_num_groups, attn1, attn2)
        self.alpha = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """x (b*f, c, h, w), text (b*f, n, context) -> (b*f, c, h, w)."""
        return gate(self.alpha, x, super().forward(x, text))
