"""Down, middle and up blocks. A layer: resnet, temporal resnet, spatial and temporal transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .config import UNetConfig
from .resnets import Downsample, SpatialResnet, TemporalResnet, Upsample
from .transformers import SpatialTransformer, TemporalTransformer


class Block(nn.Module):
    """Layers of one level; kinds of sub-layer the level does not have stay empty lists."""

    def __init__(self) -> None:
        super().__init__()
        self.attentions = nn.ModuleList()
        self.resnets = nn.ModuleList()
        self.conv3ds = nn.ModuleList()
        self.tempo_attns = nn.ModuleList()

    def add_resnet(self, in_channels: int, out_channels: int, config: UNetConfig) -> None:
        """Append a spatial resnet and, in a temporal model, the temporal resnet behind it."""
        emb = 4 * config.block_out_channels[0]
        self.resnets.append(SpatialResnet(in_channels, out_channels, emb, config.norm_num_groups, config.norm_eps))
        if config.use_temporal:
            self.conv3ds.append(TemporalResnet(out_channels, config.n_frames))

    def run_resnet(self, i: int, x: Tensor, emb: Tensor) -> Tensor:
        """Spatial, then temporal resnet of layer i."""
        x = self.resnets[i](x, emb)
        return self.conv3ds[i](x) if self.conv3ds else x

    def run_attention(self, i: int, x: Tensor, text: Tensor) -> Tensor:
        """Spatial, then temporal transformer of layer i, where the block has them."""
        if self.attentions:
            x = self.attentions[i](x, text)
        return self.tempo_attns[i](x, text) if self.tempo_attns else x


class DownBlock(Block):
    """`layers_per_block` layers and, but for the last block, a downsampler."""

    def __init__(self, config: UNetConfig, level: int) -> None:
        super().__init__()
        widths = config.block_out_channels
        channels = widths[level]
        for i in range(config.layers_per_block):
            self.add_resnet(widths[max(level - 1, 0)] if i == 0 else channels, channels, config)
            if config.down_has_attention(level):
                self.attentions.append(SpatialTransformer(channels, config.attention_head_dim[level], config))
                if config.use_temporal:
                    self.tempo_attns.append(TemporalTransformer(channels, config))
        self.downsamplers = nn.ModuleList()
        if level < len(widths) - 1:
            self.downsamplers.append(Downsample(channels, config.downsample_padding))

    def forward(self, x: Tensor, emb: Tensor, text: Tensor) -> tuple[Tensor, list[Tensor]]:
        """x (b*f, c, h, w) -> the block's output, and the skips: one a layer, one from the downsampler."""
        skips = []
        for i in range(len(self.resnets)):
            x = self.run_attention(i, self.run_resnet(i, x, emb), text)
            skips.append(x)
        for downsampler in self.downsamplers:
            x = downsampler(x)
            skips.append(x)
        return x, skips


class MidBlock(Block):
    """Two resnets around one spatial transformer; there is no temporal attention at the bottom."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        channels = config.block_out_channels[-1]
        self.add_resnet(channels, channels, config)
        self.attentions.append(SpatialTransformer(channels, config.attention_head_dim[-1], config))
        self.add_resnet(channels, channels, config)

    def forward(self, x: Tensor, emb: Tensor, text: Tensor) -> Tensor:
        """x (b*f, c, h, w) -> the same shape."""
        x = self.run_attention(0, self.run_resnet(0, x, emb), text)
        return self.run_resnet(1, x, emb)


class UpBlock(Block):
    """`layers_per_block` + 1 layers, each fed one skip, and, but for the last block, an upsampler."""

    def __init__(self, config: UNetConfig, index: int) -> None:
        super().__init__()
        widths = config.block_out_channels[::-1]
        channels, layers = widths[index], config.layers_per_block + 1
        last_skip = widths[min(index + 1, len(widths) - 1)]
        for i in range(layers):
            below = widths[max(index - 1, 0)] if i == 0 else channels
            skip = last_skip if i == layers - 1 else channels
            self.add_resnet(below + skip, channels, config)
            if config.up_has_attention(index):
                heads = config.attention_head_dim[::-1][index]
                self.attentions.append(SpatialTransformer(channels, heads, config))
                if config.use_temporal:
                    self.tempo_attns.append(TemporalTransformer(channels, config))
        self.upsamplers = nn.ModuleList()
        if index < len(widths) - 1:
            self.upsamplers.append(Upsample(channels))

    def forward(
        self, x: Tensor, skips: list[Tensor], emb: Tensor, text: Tensor, size: tuple[int, int] | None
    ) -> Tensor:
        """x (b*f, c, h, w) -> upsampled output. Takes its skips off the end of `skips`; size None doubles."""
        for i in range(len(self.resnets)):
            x = torch.cat((x, skips.pop()), dim=1)
            x = self.run_attention(i, self.run_resnet(i, x, emb), text)
        for upsampler in self.upsamplers:
            x = upsampler(x, size)
        return x
