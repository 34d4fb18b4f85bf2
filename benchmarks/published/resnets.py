"""Residual blocks and resampling: spatial ones per frame, temporal ones across frames."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import TEMPORAL_GROUPS

# Width of an embedding that was never fed to the temporal blocks; its projection is in every checkpoint.
_DEAD_EMBEDDING_WIDTH = 512


def gate(alpha: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """alpha * x + (1 - alpha) * y with alpha clamped to [0, 1]: a gate of 1 leaves the input x unchanged."""
    weight = torch.clamp(alpha, 0.0, 1.0)
    return weight * x + (1.0 - weight) * y


class SpatialResnet(nn.Module):
    """The 2-D residual block of Stable Diffusion, each frame on its own."""

    def __init__(self, in_channels: int, out_channels: int, emb_channels: int, groups: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(emb_channels, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x (b*f, in, h, w), emb (b*f, emb) -> (b*f, out, h, w)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time_emb_proj(F.silu(emb))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h


class FrameConv(nn.Conv3d):
    """A (3, 1, 1) convolution over frames that takes and gives the (b*f, c, h, w) layout."""

    def __init__(self, channels: int, n_frames: int) -> None:
        super().__init__(channels, channels, kernel_size=(3, 1, 1), padding=(1, 0, 0))
        self.n_frames = n_frames

    def forward(self, input: Tensor) -> Tensor:
        """(b*f, c, h, w) -> the same shape; frames before the first and after the last count as zero."""
        video = input.unflatten(0, (-1, self.n_frames)).transpose(1, 2)
        return super().forward(video).transpose(1, 2).flatten(0, 1)


class TemporalResnet(nn.Module):
    """Gated residual block over frames; GroupNorm is per frame, and the time embedding does not enter."""

    def __init__(self, channels: int, n_frames: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1))
        self.norm1 = nn.GroupNorm(TEMPORAL_GROUPS, channels, eps=1e-6)
        self.conv1 = FrameConv(channels, n_frames)
        self.time_emb_proj = nn.Linear(_DEAD_EMBEDDING_WIDTH, channels)
        self.norm2 = nn.GroupNorm(TEMPORAL_GROUPS, channels, eps=1e-6)
        self.conv2 = FrameConv(channels, n_frames)

    def forward(self, x: Tensor) -> Tensor:
        """(b*f, c, h, w) -> the same shape."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return gate(self.alpha, x, x + h)


class Downsample(nn.Module):
    """3x3 convolution of stride 2: odd sizes round up."""

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        self.padding = padding
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c, ceil(h / 2), ceil(w / 2))."""
        if self.padding == 0:
            x = F.pad(x, (0, 1, 0, 1))
        return self.conv(x)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling, then a 3x3 convolution on the large map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """(n, c, h, w) -> (n, c, *size); size None doubles both sides."""
        if size is None:
            return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv(F.interpolate(x, size=size, mode="nearest"))
