"""Positions along the frames for temporal attention: rotary (published default) or sinusoidal."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RotaryPositions(nn.Module):
    """Rotary embedding (Su et al. 2021, arXiv:2104.09864) of the JOINED channels, before the split into heads.

    Only the first half of the channels turns, in adjacent pairs (2i, 2i+1): so the first half of the heads is rotated,
    each with its own band of frequencies, and the other half is not.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        exponent = torch.arange(0, channels // 2, 2).float() / (channels // 2)
        self.freqs = nn.Parameter(1.0 / 10000**exponent, requires_grad=False)

    def rotate(self, x: Tensor) -> Tensor:
        """x [b, positions, n, c]: position p along axis 1 turns pair i by ``p * freqs[i]``. Same shape out."""
        compute = torch.promote_types(self.freqs.dtype, torch.float32)
        position = torch.arange(x.shape[1], dtype=compute, device=x.device)
        angles = position[:, None] * self.freqs.to(compute)
        cos, sin = (t.to(x.dtype)[None, :, None, :] for t in (angles.cos(), angles.sin()))
        turning, still = x.split([2 * self.freqs.shape[0], x.shape[-1] - 2 * self.freqs.shape[0]], dim=-1)
        even, odd = turning.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)
        return torch.cat([turned, still], dim=-1)


class SinusoidalPositions(nn.Module):
    """Additive positions: ``pe[p, 2k] = sin(p / 10000^(k/c))``, ``pe[p, 2k+1] = cos(same)`` (exponent k/c, as
    published).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        # A checkpoint key of the published module; it carries nothing.
        self.dummy = nn.Parameter(torch.zeros(1), requires_grad=False)

    def table(self, positions: int, like: Tensor) -> Tensor:
        """[positions, c], computed in float32 as published, in the dtype and on the device of `like`."""
        k = torch.arange(self.channels // 2, dtype=torch.float32, device=like.device)
        p = torch.arange(positions, dtype=torch.float32, device=like.device)
        angles = p[:, None] / 10000 ** (k / self.channels)
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2).to(like.dtype)

    def add(self, x: Tensor) -> Tensor:
        """x [b, positions, n, c] plus the position along axis 1."""
        return x + self.table(x.shape[1], x)[None, :, None, :]
