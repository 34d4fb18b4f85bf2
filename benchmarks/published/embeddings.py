"""Timestep and frame-stride embeddings, and the two temporal position encodings."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sinusoid(values: Tensor, dim: int, *, flip_sin_to_cos: bool, freq_shift: float) -> Tensor:
    """Sinusoidal embedding of DDPM (https://arxiv.org/abs/2006.11239).

    Args:
        values: (n,) timesteps or strides, any dtype.
        dim: even width of the result.
        flip_sin_to_cos: cosines first, as Stable Diffusion has them.
        freq_shift: subtracted from dim / 2 in the exponent's denominator.

    Returns:
        (n, dim) float32.
    """
    half = dim // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=values.device)
    frequencies = torch.exp(exponent / (half - freq_shift))
    angles = values[:, None].float() * frequencies[None, :]
    sin, cos = torch.sin(angles), torch.cos(angles)
    return torch.cat((cos, sin) if flip_sin_to_cos else (sin, cos), dim=-1)


class ScalarEmbedding(nn.Module):
    """The two-layer MLP on top of a sinusoid: (n, dim) -> (n, width)."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(dim, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Linear, SiLU, Linear."""
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
        """Rotate x (n, length, channels) by positions (length,); channels beyond the table pass through."""
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
        """(length, channels), computed in float32 and given in the dtype and on the device of `like`."""
        pairs = torch.arange(self.channels // 2, dtype=torch.float32, device=like.device)
        positions = torch.arange(length, dtype=torch.float32, device=like.device)
        angles = positions[:, None] / 10000 ** (pairs / self.channels)[None, :]
        return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2).to(like.dtype)
