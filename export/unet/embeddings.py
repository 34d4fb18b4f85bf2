"""Timestep and frame-stride embeddings (Ho et al. 2020, arXiv:2006.11239, after Vaswani et al. 2017)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sinusoid(values: Tensor, dim: int, flip_sin_to_cos: bool, freq_shift: float) -> Tensor:
    """Sinusoidal features of scalars.

    Args:
        values: [rows], any dtype.
        dim: number of features; even.
        flip_sin_to_cos: [cos, sin] order instead of [sin, cos].
        freq_shift: frequencies are ``10000 ** (-i / (dim/2 - freq_shift))``.

    Returns:
        float32 [rows, dim]; float32 whatever the model's precision, because half precision cannot hold the angles.
    """
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=values.device) / (half - freq_shift)
    angles = values[:, None].float() * torch.exp(-math.log(10000) * exponent)[None, :]
    parts = [angles.cos(), angles.sin()] if flip_sin_to_cos else [angles.sin(), angles.cos()]
    return torch.cat(parts, dim=-1)


class ScalarEmbedding(nn.Module):
    """Two-layer perceptron over a sinusoid: the published ``time_embedding`` and ``frame_stride_embedding``."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_dim, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, features: Tensor) -> Tensor:
        """[rows, in_dim] -> [rows, dim]."""
        hidden = F.silu(self.linear_1(features.to(self.linear_1.weight.dtype)))
        out: Tensor = self.linear_2(hidden)
        return out
