"""The three attentions of the video U-Net, each projecting every token once.

Tokens are [b, f, n, c] throughout: b clips, f frames, n = h*w positions of a frame, c channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .positions import RotaryPositions, SinusoidalPositions

KeyValue = tuple[Tensor, ...]
"""Keys and values of one text attention, each [b, heads, text length, c / heads]; a simplified one has other parts."""

Positions = RotaryPositions | SinusoidalPositions


class Attention(nn.Module):
    """Projections shared by all attentions; key names as in the published checkpoint (no bias on q, k, v)."""

    def __init__(self, channels: int, heads: int, context_channels: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_channels, channels, bias=False)
        self.to_v = nn.Linear(context_channels, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def split_heads(self, x: Tensor) -> Tensor:
        """[batch, tokens, c] -> [batch, heads, tokens, c / heads]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Scaled dot-product attention over split heads; [batch, heads, tokens, c / heads] -> [batch, tokens, c]."""
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def project_out(self, x: Tensor) -> Tensor:
        out: Tensor = self.to_out[0](x)
        return out


class PositionedAttention(Attention):
    """An attention along the frames; its positions stand under the published module names."""

    def __init__(self, channels: int, heads: int, context_channels: int, positions: Positions | None) -> None:
        super().__init__(channels, heads, context_channels)
        self.rotary_emb = positions if isinstance(positions, RotaryPositions) else None
        self.pos_enc = positions if isinstance(positions, SinusoidalPositions) else None
        if self.rotary_emb is not None:
            # A checkpoint key that the published forward never reads: kept so that state dicts travel both ways.
            self.rotary_bias = nn.ModuleDict({"relative_attention_bias": nn.Embedding(32, heads)})

    def add_position(self, x: Tensor) -> Tensor:
        """Sinusoidal positions are added to the tokens [b, f, n, c] before the projections."""
        return x if self.pos_enc is None else self.pos_enc.add(x)

    def rotate(self, x: Tensor) -> Tensor:
        """Rotary positions turn the projections [b, f, n, c]."""
        return x if self.rotary_emb is None else self.rotary_emb.rotate(x)


class FirstFrameSelfAttention(Attention):
    """Spatial self-attention in which every frame also sees the first frame's tokens.

    The published code appends frame 0's tokens to each frame's and projects them again f times; here they are
    projected once and shared (R2). Frame 0 itself would list its own keys twice, which leaves its softmax average
    unchanged: once is enough (R3).
    """

    def forward(self, x: Tensor) -> Tensor:
        """[b, f, n, c] -> same."""
        b, f, n, c = x.shape
        q, k, v = (layer(x) for layer in (self.to_q, self.to_k, self.to_v))
        first = self.attend(*(self.split_heads(t[:, 0]) for t in (q, k, v)))
        others = self.attend(
            self.split_heads(q[:, 1:].flatten(0, 1)),
            *(self.split_heads(self._with_first_frame(t)) for t in (k, v)),
        )
        joined = torch.cat([first.reshape(b, 1, n, c), others.reshape(b, f - 1, n, c)], dim=1)
        return self.project_out(joined)

    @staticmethod
    def _with_first_frame(x: Tensor) -> Tensor:
        """[b, f, n, c] -> [b*(f-1), 2n, c]: the tokens of frames 1.. each followed by frame 0's."""
        others = x[:, 1:]
        return torch.cat([others, x[:, :1].expand_as(others)], dim=2).flatten(0, 1)


class TextAttention(PositionedAttention):
    """Cross-attention to the text. Its keys and values do not change over the steps: see :meth:`key_values` (R1).

    With positions (temporal layers) the queries carry their frame's position; the keys do not, except that the
    published code rotates them when the text happens to be as long as the clip.
    """

    parts: tuple[str, ...] = ("key", "value")
    """Names of what :meth:`key_values` returns."""

    def __init__(
        self,
        channels: int,
        heads: int,
        text_channels: int,
        positions: Positions | None = None,
        n_frames: int = 0,
    ) -> None:
        super().__init__(channels, heads, text_channels, positions)
        self.n_frames = n_frames

    def key_values(self, text: Tensor) -> KeyValue:
        """text [b, length, text channels] -> keys and values, once per prompt."""
        k, v = self.to_k(text), self.to_v(text)
        if text.shape[1] == self.n_frames:
            k = self.rotate(k[:, :, None])[:, :, 0]
        return self.split_heads(k), self.split_heads(v)

    def forward(self, x: Tensor, key_value: KeyValue) -> Tensor:
        """[b, f, n, c] -> same: one attention of f*n queries per clip."""
        q = self.rotate(self.to_q(self.add_position(x)))
        key, value = key_value
        out = self.attend(self.split_heads(q.flatten(1, 2)), key, value)
        return self.project_out(out).reshape(x.shape)


class WindowedTemporalAttention(PositionedAttention):
    """Temporal self-attention: each position over its f frames and, with the window, frame 0's 8 neighbours of that
    position.

    The neighbours all stand at position 0, which turns nothing, so their keys and values are frame 0's own, taken from
    the projections instead of being projected again (R4).
    """

    def __init__(self, channels: int, heads: int, positions: Positions, window: bool) -> None:
        super().__init__(channels, heads, channels, positions)
        self.window = window

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """x [b, f, h*w, c] -> same."""
        b, f, n, c = x.shape
        x = self.add_position(x)
        q, k, v = self.rotate(self.to_q(x)), self.rotate(self.to_k(x)), self.to_v(x)
        if self.window:
            neighbours = window_indices(height, width, x.device)
            k, v = (torch.cat([t, t[:, 0].index_select(1, neighbours).reshape(b, 8, n, c)], dim=1) for t in (k, v))
        out = self.attend(*(self._per_position(t) for t in (q, k, v)))
        return self.project_out(out.reshape(b, n, f, c).transpose(1, 2))

    def _per_position(self, x: Tensor) -> Tensor:
        """[b, t, n, c] -> [b*n, heads, t, c / heads]."""
        return x.unflatten(-1, (self.heads, -1)).permute(0, 2, 3, 1, 4).flatten(0, 1)


def window_indices(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Flat indices of the 3x3 neighbours without the centre, row-major, edges replicated: int64 [8 * h*w],
    neighbour-major.
    """
    rows = torch.arange(height, device=device)[:, None]
    columns = torch.arange(width, device=device)[None, :]
    neighbours = [
        (rows + dy).clamp(0, height - 1) * width + (columns + dx).clamp(0, width - 1)
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
        if (dy, dx) != (0, 0)
    ]
    return torch.stack(neighbours).flatten()
