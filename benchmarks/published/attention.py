"""The attentions of ConsistI2V (https://arxiv.org/abs/2402.04324): cross-frame, windowed temporal, text."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .embeddings import RotaryBias, RotaryEmbedding, SinusoidalPositions

Size = tuple[int, int]


class Attention(nn.Module):
    """Multi-head attention with the checkpoint's parameter names; q, k and v have no bias."""

    def __init__(self, channels: int, context_channels: int, heads: int, n_frames: int) -> None:
        super().__init__()
        self.heads = heads
        self.n_frames = n_frames
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_channels, channels, bias=False)
        self.to_v = nn.Linear(context_channels, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (n, lq, c), k and v (n, lk, c) -> (n, lq, c), output projection included."""
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v)
        return self.to_out[0](out.transpose(1, 2).flatten(2))


class SpatialAttention(Attention):
    """Within a frame. Self-attention also sees frame 0, concatenated before the key and value projections."""

    def forward(self, x: Tensor, text: Tensor | None, size: Size) -> Tensor:
        """x (b*f, h*w, c); text (b*f, n, context) or None for self-attention -> (b*f, h*w, c)."""
        if text is None:
            clips = x.unflatten(0, (-1, self.n_frames))
            first = clips[:, :1].repeat(1, self.n_frames, 1, 1).flatten(0, 1)
            context = torch.cat((x, first), dim=1)
        else:
            context = text
        return self.attend(self.to_q(x), self.to_k(context), self.to_v(context))


class TemporalAttention(Attention):
    """Across frames, every spatial position on its own; positions enter as rotary or sinusoidal encoding."""

    def __init__(
        self,
        channels: int,
        context_channels: int,
        heads: int,
        n_frames: int,
        *,
        positions: str,
        window: bool,
    ) -> None:
        super().__init__(channels, context_channels, heads, n_frames)
        self.window = window
        self.rotary = positions == "rotary"
        if self.rotary:
            self.rotary_bias = RotaryBias(heads)
            self.rotary_emb = RotaryEmbedding(channels // 2)
        else:
            self.pos_enc = SinusoidalPositions(channels)

    def forward(self, x: Tensor, text: Tensor | None, size: Size) -> Tensor:
        """x (b*f, h*w, c); text (b*f, n, context) or None (self-attention); size (h, w) -> (b*f, h*w, c)."""
        frames, area = self.n_frames, x.shape[1]
        tokens = x.unflatten(0, (-1, frames)).transpose(1, 2).flatten(0, 1)
        if not self.rotary:
            tokens = tokens + self.pos_enc.table(frames, x)
        context = self._context(tokens, x, text, size)
        q, k, v = self.to_q(tokens), self.to_k(context), self.to_v(context)
        if self.rotary:
            q, k = self._rotate(q, k, is_text=text is not None)
        out = self.attend(q, k, v)
        return out.unflatten(0, (-1, area)).transpose(1, 2).flatten(0, 1)

    def _context(self, tokens: Tensor, x: Tensor, text: Tensor | None, size: Size) -> Tensor:
        if text is not None:
            return text[:: self.n_frames].repeat_interleave(x.shape[1], dim=0)
        if not self.window:
            return tokens
        neighbours = first_frame_window(x[:: self.n_frames], size)
        if not self.rotary:
            neighbours = neighbours + self.pos_enc.table(1, x)
        return torch.cat((tokens, neighbours), dim=1)

    def _rotate(self, q: Tensor, k: Tensor, *, is_text: bool) -> tuple[Tensor, Tensor]:
        frames = torch.arange(self.n_frames, device=q.device)
        q = self.rotary_emb.rotate(q, frames)
        if not is_text:
            at_first = frames.new_zeros(k.shape[1] - self.n_frames)
            k = self.rotary_emb.rotate(k, torch.cat((frames, at_first)))
        elif k.shape[1] == self.n_frames:
            # The original tells the two attentions apart by length: a text as long as the clip is rotated.
            k = self.rotary_emb.rotate(k, frames)
        return q, k


def first_frame_window(first: Tensor, size: Size) -> Tensor:
    """Frame 0's tokens at the eight neighbours of every position, replicated at the border.

    Args:
        first: (b, h*w, c) tokens of frame 0.
        size: (h, w).

    Returns:
        (b*h*w, 8, c), neighbours row by row without the centre.
    """
    image = first.transpose(1, 2).unflatten(-1, size)
    patches = F.unfold(F.pad(image, (1, 1, 1, 1), mode="replicate"), kernel_size=3)
    patches = patches.unflatten(1, (-1, 9)).permute(0, 3, 2, 1)
    return torch.cat((patches[:, :, :4], patches[:, :, 5:]), dim=2).flatten(0, 1)
