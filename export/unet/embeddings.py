"""Timestep and frame-stride embeddings (Ho et al. 2020, arXiv:2006.11239, after Vaswani et al. 2017)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ScalarEmbedding(nn.Module):
    """Sinusoid of a scalar, then a two-layer perceptron: the published ``time_embedding``, ``frame_stride_embedding``.

    Args:
        features: width of the sinusoid; even.
        dim: width of the embedding.
        flip_sin_to_cos: [cos, sin] order instead of [sin, cos].
        freq_shift: frequencies are ``10000 ** (-i / (features / 2 - freq_shift))``.
    """

    def __init__(self, features: int, dim: int, flip_sin_to_cos: bool, freq_shift: float) -> None:
        super().__init__()
        self.flip_sin_to_cos = flip_sin_to_cos
        self.linear_1 = nn.Linear(features, dim)
        self.linear_2 = nn.Linear(dim, dim)
        # torch's float32 values, in the published order of operations, as numbers: at timestep 981 one rounding of a
        # frequency turns the angle by 6e-5, and neither a cast of the module nor an exporter that folds constants with
        # another library's exp may touch them.
        exponent = -math.log(10000) * torch.arange(features // 2, dtype=torch.float32, device="cpu")
        self.frequencies: list[float] = torch.exp(exponent / (features // 2 - freq_shift)).tolist()

    def sinusoid(self, values: Tensor) -> Tensor:
        """[rows], any dtype -> float32 [rows, features]: half precision cannot hold the angles."""
        frequencies = torch.tensor(self.frequencies, dtype=torch.float32, device=values.device)
        angles = values[:, None].float() * frequencies
        parts = [angles.cos(), angles.sin()] if self.flip_sin_to_cos else [angles.sin(), angles.cos()]
        return torch.cat(parts, dim=-1)

    def forward(self, values: Tensor) -> Tensor:
        """[rows] -> [rows, dim]."""
        features = self.sinusoid(values).to(self.linear_1.weight.dtype)
        out: Tensor = self.linear_2(F.silu(self.linear_1(features)))
        return out
