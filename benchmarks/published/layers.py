"""Layers of the published U-Net (https://arxiv.org/abs/2402.04324); parameter names are those of the checkpoint.

Shapes: ``x`` is [b * f, c, h, w] in residual blocks and [b * f, h * w, c] in attentions; text is [b * f, n, context].
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...export.unet.config import TEMPORAL_NORM_GROUPS, UNetConfig

Size = tuple[int, int]

# Width of an embedding that was never fed to the temporal blocks; its projection is in every checkpoint.
_DEAD_EMBEDDING_WIDTH = 512


# -- embeddings --------------------------------------------------------------------------------------------------------


def sinusoid(values: Tensor, dim: int, *, flip_sin_to_cos: bool, freq_shift: float) -> Tensor:
    """Sinusoidal embedding of DDPM (https://arxiv.org/abs/2006.11239): [n] of any dtype -> [n, dim] float32.

    Args:
        flip_sin_to_cos: cosines first, as Stable Diffusion has them.
        freq_shift: subtracted from dim / 2 in the exponent's denominator.
    """
    half = dim // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=values.device)
    angles = values[:, None].float() * torch.exp(exponent / (half - freq_shift))[None, :]
    sin, cos = torch.sin(angles), torch.cos(angles)
    return torch.cat((cos, sin) if flip_sin_to_cos else (sin, cos), dim=-1)


class ScalarEmbedding(nn.Module):
    """The two-layer MLP on top of a sinusoid: [n, dim] -> [n, width]."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(dim, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class RotaryEmbedding(nn.Module):
    """Rotary positions (https://arxiv.org/abs/2104.09864) on the first `dim` channels, before the head split.

    Adjacent channels (2i, 2i + 1) form a pair. The frequency table is a frozen parameter of the checkpoint.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        frequencies = 1.0 / 10000 ** (torch.arange(0, dim, 2).float() / dim)
        self.freqs = nn.Parameter(frequencies, requires_grad=False)

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rotate x [n, length, channels] by positions [length]; channels beyond the table pass through."""
        angles = (positions.to(self.freqs.dtype)[:, None] * self.freqs[None, :]).repeat_interleave(2, dim=-1)
        rotated, rest = x[..., : angles.shape[-1]], x[..., angles.shape[-1] :]
        even, odd = rotated.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack((-odd, even), dim=-1).flatten(-2)
        return torch.cat((rotated * angles.cos() + turned * angles.sin(), rest), dim=-1)


class RotaryBias(nn.Module):
    """A table the checkpoint carries and no forward pass reads."""

    def __init__(self, heads: int, buckets: int = 32) -> None:
        super().__init__()
        self.relative_attention_bias = nn.Embedding(buckets, heads)


class SinusoidalPositions(nn.Module):
    """Additive positions, pe[p, 2k] = sin(p / 10000^(k / C)) and pe[p, 2k + 1] = cos of the same angle.

    The exponent is k / C, not the 2k / C of the transformer paper: the published model has it so. `dummy` is in
    the checkpoint and is never read.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.dummy = nn.Parameter(torch.zeros(1))

    def table(self, length: int, like: Tensor) -> Tensor:
        """[length, channels], computed in float32 and given in the dtype and on the device of `like`."""
        pairs = torch.arange(self.channels // 2, dtype=torch.float32, device=like.device)
        positions = torch.arange(length, dtype=torch.float32, device=like.device)
        angles = positions[:, None] / 10000 ** (pairs / self.channels)[None, :]
        return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2).to(like.dtype)


# -- attention ---------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Multi-head attention; q, k and v have no bias."""

    def __init__(self, channels: int, context_channels: int, heads: int, n_frames: int) -> None:
        super().__init__()
        self.heads, self.n_frames = heads, n_frames
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_channels, channels, bias=False)
        self.to_v = nn.Linear(context_channels, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [n, lq, c], k and v [n, lk, c] -> [n, lq, c], output projection included."""
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        return self.to_out[0](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class SpatialAttention(Attention):
    """Within a frame. Self-attention (no text) also sees frame 0, concatenated before the key and value projections."""

    def forward(self, x: Tensor, text: Tensor | None, size: Size) -> Tensor:
        context = text
        if context is None:
            first = x.unflatten(0, (-1, self.n_frames))[:, :1].repeat(1, self.n_frames, 1, 1).flatten(0, 1)
            context = torch.cat((x, first), dim=1)
        return self.attend(self.to_q(x), self.to_k(context), self.to_v(context))


class TemporalAttention(Attention):
    """Across frames, every spatial position on its own; positions enter as rotary or sinusoidal encoding."""

    def __init__(self, channels: int, context_channels: int, config: UNetConfig, *, window: bool) -> None:
        super().__init__(channels, context_channels, config.n_temp_heads, config.n_frames)
        self.window, self.rotary = window, config.temp_pos_embedding == "rotary"
        if self.rotary:
            self.rotary_bias = RotaryBias(self.heads)
            self.rotary_emb = RotaryEmbedding(channels // 2)
        else:
            self.pos_enc = SinusoidalPositions(channels)

    def forward(self, x: Tensor, text: Tensor | None, size: Size) -> Tensor:
        frames, area = self.n_frames, x.shape[1]
        tokens = x.unflatten(0, (-1, frames)).transpose(1, 2).flatten(0, 1)
        if not self.rotary:
            tokens = tokens + self.pos_enc.table(frames, x)
        context = tokens
        if text is not None:
            context = text[::frames].repeat_interleave(area, dim=0)
        elif self.window:
            near = first_frame_window(x[::frames], size)
            context = torch.cat((tokens, near if self.rotary else near + self.pos_enc.table(1, x)), dim=1)
        q, k, v = self.to_q(tokens), self.to_k(context), self.to_v(context)
        if self.rotary:
            q, k = self._rotate(q, k, is_text=text is not None)
        return self.attend(q, k, v).unflatten(0, (-1, area)).transpose(1, 2).flatten(0, 1)

    def _rotate(self, q: Tensor, k: Tensor, *, is_text: bool) -> tuple[Tensor, Tensor]:
        frames = torch.arange(self.n_frames, device=q.device)
        # The original tells the two attentions apart by length: a text as long as the clip is rotated.
        if not is_text or k.shape[1] == self.n_frames:
            at_first = frames.new_zeros(k.shape[1] - self.n_frames)
            k = self.rotary_emb.rotate(k, torch.cat((frames, at_first)))
        return self.rotary_emb.rotate(q, frames), k


def first_frame_window(first: Tensor, size: Size) -> Tensor:
    """Frame 0's tokens [b, h * w, c] at the eight neighbours of every position, replicated at the border.

    Returns:
        [b * h * w, 8, c], neighbours row by row without the centre.
    """
    image = first.transpose(1, 2).unflatten(-1, size)
    patches = F.unfold(F.pad(image, (1, 1, 1, 1), mode="replicate"), kernel_size=3)
    patches = patches.unflatten(1, (-1, 9)).permute(0, 3, 2, 1)
    return torch.cat((patches[:, :, :4], patches[:, :, 5:]), dim=2).flatten(0, 1)


# -- transformers ------------------------------------------------------------------------------------------------------


def gate(alpha: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """alpha * x + (1 - alpha) * y with alpha clamped to [0, 1]: a gate of 1 leaves the input x unchanged."""
    weight = torch.clamp(alpha, 0.0, 1.0)
    return weight * x + (1.0 - weight) * y


class GEGLU(nn.Module):
    """u * gelu(g) for the halves (u, g) of one projection (https://arxiv.org/abs/2002.05202), exact gelu."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        value, gating = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gating)


class FeedForward(nn.Module):
    """GEGLU and a linear layer; place 1 of `net` is the original's dropout of 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = 4 * channels
        self.net = nn.Sequential(GEGLU(channels, inner), nn.Identity(), nn.Linear(inner, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, text cross-attention and feed-forward, each on a LayerNorm and with a residual."""

    def __init__(self, channels: int, attn1: Attention, attn2: Attention) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))
        self.attn1, self.attn2 = attn1, attn2
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor, text: Tensor, size: Size) -> Tensor:
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
        """[b * f, c, h, w] -> the same shape."""
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
        attn1 = TemporalAttention(channels, channels, config, window=config.augment_temporal_attention)
        attn2 = TemporalAttention(channels, config.cross_attention_dim, config, window=False)
        super().__init__(channels, config.norm_num_groups, attn1, attn2)
        self.alpha = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        return gate(self.alpha, x, super().forward(x, text))


# -- residual blocks and resampling ------------------------------------------------------------------------------------


class SpatialResnet(nn.Module):
    """The 2-D residual block of Stable Diffusion, each frame on its own."""

    def __init__(self, in_channels: int, out_channels: int, config: UNetConfig) -> None:
        super().__init__()
        groups, eps = config.norm_num_groups, config.norm_eps
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(config.time_embed_dim, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x [b * f, in, h, w], emb [b * f, emb] -> [b * f, out, h, w]."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time_emb_proj(F.silu(emb))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h


class FrameConv(nn.Conv3d):
    """A (3, 1, 1) convolution over frames on [b * f, c, h, w]; before the first and after the last frame is zero."""

    def __init__(self, channels: int, n_frames: int) -> None:
        super().__init__(channels, channels, kernel_size=(3, 1, 1), padding=(1, 0, 0))
        self.n_frames = n_frames

    def forward(self, input: Tensor) -> Tensor:
        video = input.unflatten(0, (-1, self.n_frames)).transpose(1, 2)
        return super().forward(video).transpose(1, 2).flatten(0, 1)


class TemporalResnet(nn.Module):
    """Gated residual block over frames; GroupNorm is per frame, and the time embedding does not enter."""

    def __init__(self, channels: int, n_frames: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1))
        self.norm1 = nn.GroupNorm(TEMPORAL_NORM_GROUPS, channels, eps=1e-6)
        self.conv1 = FrameConv(channels, n_frames)
        self.time_emb_proj = nn.Linear(_DEAD_EMBEDDING_WIDTH, channels)
        self.norm2 = nn.GroupNorm(TEMPORAL_NORM_GROUPS, channels, eps=1e-6)
        self.conv2 = FrameConv(channels, n_frames)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return gate(self.alpha, x, x + self.conv2(F.silu(self.norm2(h))))


class Downsample(nn.Module):
    """3x3 convolution of stride 2: odd sizes round up."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling to a size (None doubles), then a 3x3 convolution on the large map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: Size | None = None) -> Tensor:
        return self.conv(F.interpolate(x, size=size, scale_factor=2.0 if size is None else None, mode="nearest"))
