"""Down, middle and up blocks. Every layer i runs ``resnets[i] -> conv3ds[i] -> attentions[i] -> tempo_attns[i]``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from .attention import KeyValue
from .config import UNetConfig
from .resampling import Downsample, Upsample
from .resnets import SpatialResnet, TemporalResnet
from .transformers import SpatialTransformer, TemporalTransformer

TextKeyValues = Mapping[str, KeyValue]
"""Keys and values of every text attention, by the path of its transformer (``down_blocks.0.attentions.0``)."""


class Layers(nn.Module):
    """Parallel lists of layers, under the published names; what a block does not have is absent."""

    path: str = ""
    """Where the block stands in the U-Net, e.g. ``down_blocks.0``; set by the U-Net."""

    def __init__(
        self, config: UNetConfig, widths: list[tuple[int, int]], heads: int, spatial: bool, temporal: bool
    ) -> None:
        super().__init__()
        out = widths[0][1]
        self.resnets = nn.ModuleList(
            SpatialResnet(*io, config.time_embed_dim, config.norm_num_groups, config.norm_eps) for io in widths
        )
        self.conv3ds = nn.ModuleList()
        self.attentions = nn.ModuleList()
        self.tempo_attns = nn.ModuleList()
        if config.use_temporal:
            self.conv3ds.extend(TemporalResnet(out, config.n_frames) for _ in widths)
        if spatial:
            self.attentions.extend(SpatialTransformer(config, out, heads) for _ in widths)
        if temporal and config.use_temporal:
            self.tempo_attns.extend(TemporalTransformer(config, out) for _ in widths)

    def resnet(self, i: int, x: Tensor, emb: Tensor) -> Tensor:
        x = self.resnets[i](x, emb)
        return self.conv3ds[i](x) if self.conv3ds else x

    def attend(self, i: int, x: Tensor, text: TextKeyValues) -> Tensor:
        if self.attentions:
            x = self.attentions[i](x, text[f"{self.path}.attentions.{i}"])
        if self.tempo_attns:
            x = self.tempo_attns[i](x, text.get(f"{self.path}.tempo_attns.{i}"))
        return x


class DownBlock(Layers):
    """One level on the way down: residual layers, transformers where the level has them, and a downsampling."""

    def __init__(
        self,
        config: UNetConfig,
        in_channels: int,
        out_channels: int,
        heads: int,
        attention: bool,
        downsample: bool,
    ) -> None:
        widths = [(in_channels if i == 0 else out_channels, out_channels) for i in range(config.layers_per_block)]
        super().__init__(config, widths, heads, spatial=attention, temporal=attention)
        self.downsamplers = nn.ModuleList([Downsample(out_channels)] if downsample else [])

    def skips(self, x: Tensor, emb: Tensor, text: TextKeyValues) -> Iterator[Tensor]:
        """x [(b f), c_in, h, w] -> the block's skips in order, each computed when asked for; the last is its output."""
        for i in range(len(self.resnets)):
            x = self.attend(i, self.resnet(i, x, emb), text)
            yield x
        for downsampler in self.downsamplers:
            x = downsampler(x)
            yield x


class MidBlock(Layers):
    """Two resnets with one spatial transformer between them; no temporal attention."""

    def __init__(self, config: UNetConfig, channels: int, heads: int) -> None:
        super().__init__(config, [(channels, channels)] * 2, heads, spatial=True, temporal=False)
        del self.attentions[1]

    def forward(self, x: Tensor, emb: Tensor, text: TextKeyValues) -> Tensor:
        x = self.attend(0, self.resnet(0, x, emb), text)
        return self.resnet(1, x, emb)


class UpBlock(Layers):
    """One level on the way up: residual layers that take the skips, transformers, and an upsampling."""

    def __init__(
        self,
        config: UNetConfig,
        in_channels: int,
        out_channels: int,
        skip_channels: list[int],
        heads: int,
        attention: bool,
        upsample: bool,
    ) -> None:
        widths = [
            ((in_channels if i == 0 else out_channels) + skip, out_channels) for i, skip in enumerate(skip_channels)
        ]
        super().__init__(config, widths, heads, spatial=attention, temporal=attention)
        self.upsamplers = nn.ModuleList([Upsample(out_channels)] if upsample else [])

    def layer(self, i: int, x: Tensor, skips: list[Tensor], emb: Tensor, text: TextKeyValues) -> Tensor:
        """Layer i takes its skip off the end of the list; the last one upsamples to the size of the next one left."""
        x = torch.cat([x, skips.pop()], dim=1)
        x = self.attend(i, self.resnet(i, x, emb), text)
        if self.upsamplers and i == len(self.resnets) - 1:
            height, width = skips[-1].shape[-2:]
            x = self.upsamplers[0](x, (height, width))
        return x
