"""The layers of EfficientNet-Lite0, named as in the published state dict."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_BN_EPS = 1e-3
# (repeats, kernel, stride, expansion, channels): EfficientNet-B0's, which Lite0 keeps.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow does: output = ceil(input / stride), the odd row and column at the end."""

    def forward(self, input: Tensor) -> Tensor:
        across, down = (
            max((-(-size // stride) - 1) * stride + kernel - size, 0)
            for size, stride, kernel in zip(
                reversed(input.shape[-2:]), reversed(self.stride), reversed(self.kernel_size), strict=True
            )
        )
        return super().forward(F.pad(input, [across // 2, across - across // 2, down // 2, down - down // 2]))


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise, project 1x1; the input added where the shape stays."""

    def __init__(self, width: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = width * expansion
        if expansion != 1:
            self._expand_conv = nn.Conv2d(width, inner, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(inner, eps=_BN_EPS)
        self._depthwise_conv = SameConv2d(inner, inner, kernel, stride, groups=inner, bias=False)
        self._bn1 = nn.BatchNorm2d(inner, eps=_BN_EPS)
        self._project_conv = nn.Conv2d(inner, out, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(out, eps=_BN_EPS)
        self._expands = expansion != 1
        self._adds = stride == 1 and width == out

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self._bn0(self._expand_conv(x))) if self._expands else x
        h = F.relu6(self._bn1(self._depthwise_conv(h)))
        h = self._bn2(self._project_conv(h))
        return x + h if self._adds else h


class EfficientNetLite0(nn.Module):
    """[n, 3, 224, 224], (x - 127) / 128 of 0..255 pixels -> 1000 ImageNet logits. 4.65 million parameters."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(3, 32, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(32, eps=_BN_EPS)
        blocks, width = [], 32
        for repeats, kernel, stride, expansion, out in _STAGES:
            for repeat in range(repeats):
                blocks.append(InvertedResidual(width, out, kernel, stride if repeat == 0 else 1, expansion))
                width = out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = nn.Conv2d(width, 1280, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(1280, eps=_BN_EPS)
        self._fc = nn.Linear(1280, classes)

    def features(self, pixels: Tensor) -> Tensor:
        """[n, 1280] before the classifier."""
        h = F.relu6(self._bn0(self._conv_stem(pixels)))
        for block in self._blocks:
            h = block(h)
        return F.relu6(self._bn1(self._conv_head(h))).mean(dim=(2, 3))

    def forward(self, pixels: Tensor) -> Tensor:
        logits: torch.Tensor = self._fc(self.features(pixels))
        return logits
