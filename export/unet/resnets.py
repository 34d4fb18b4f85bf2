"""Spatial and temporal residual blocks (consisti2v ``ResnetBlock2D`` and ``TemporalResnetBlock``)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .config import TEMPORAL_NORM_GROUPS
from .gate import GatedResidual


class SpatialResnet(nn.Module):
    """Per-frame residual block: ``shortcut(x) + conv2(silu(GN2(conv1(silu(GN1(x))) + Linear(silu(emb)))))``."""

    def __init__(self, in_channels: int, out_channels: int, embed_dim: int, groups: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(embed_dim, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor, activated_emb: Tensor) -> Tensor:
        """x [(b f), c_in, h, w]; activated_emb ``silu(emb)``, [1, embed] or [(b f), embed] -> [(b f), c_out, h, w]."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time_emb_proj(activated_emb)[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        shortcut: Tensor = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return shortcut + h


class TemporalResnet(GatedResidual):
    """Gated residual block of two convolutions along the frames, kernel 3, zero frames at both ends.

    Group statistics are per frame, over 32 groups with eps 1e-6 whatever the spatial layers use.
    """

    def __init__(self, channels: int, n_frames: int) -> None:
        super().__init__()
        self.n_frames = n_frames
        self.norm1 = nn.GroupNorm(TEMPORAL_NORM_GROUPS, channels, eps=1e-6)
        self.conv1 = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))
        # A checkpoint key that the published forward never reads: kept so that state dicts travel both ways.
        self.time_emb_proj = nn.Linear(512, channels)
        self.norm2 = nn.GroupNorm(TEMPORAL_NORM_GROUPS, channels, eps=1e-6)
        self.conv2 = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))

    def last_layer(self) -> nn.Conv3d:
        return self.conv2

    def forward(self, x: Tensor) -> Tensor:
        """[(b f), c, h, w] -> same."""
        if self.is_identity:
            return x
        h = self._conv_frames(self.conv1, F.silu(self.norm1(x)))
        h = self._conv_frames(self.conv2, F.silu(self.norm2(h)))
        return self.add_branch(x, h)

    def _conv_frames(self, conv: nn.Conv3d, x: Tensor) -> Tensor:
        """The (3, 1, 1) convolution as a (3, 1) one over [frames, positions]: 2-D kernels are everywhere the better
        kept ones.
        """
        rows, channels, height, width = x.shape
        frames = x.reshape(-1, self.n_frames, channels, height * width).transpose(1, 2)
        out = F.conv2d(frames, conv.weight[..., 0], conv.bias, padding=(1, 0))
        return out.transpose(1, 2).reshape(rows, channels, height, width)
