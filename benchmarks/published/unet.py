"""The published ConsistI2V U-Net (https://arxiv.org/abs/2402.04324) around Stable Diffusion 2.1's layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import UserError
from ...export.unet.config import UNetConfig
from .layers import (
    Downsample,
    ScalarEmbedding,
    Size,
    SpatialResnet,
    SpatialTransformer,
    TemporalResnet,
    TemporalTransformer,
    Upsample,
    sinusoid,
)


class Block(nn.Module):
    """Layers of one level: resnet, temporal resnet, spatial and temporal transformer. Kinds that the level does not
    have stay empty lists.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.attentions, self.resnets = nn.ModuleList(), nn.ModuleList()
        self.conv3ds, self.tempo_attns = nn.ModuleList(), nn.ModuleList()

    def add(self, in_channels: int, channels: int, heads: int | None = None, *, temporal: bool = True) -> None:
        """Append a resnet and, with a number of heads, a transformer; in a temporal model the temporal ones too."""
        config = self.config
        self.resnets.append(SpatialResnet(in_channels, channels, config))
        if config.use_temporal:
            self.conv3ds.append(TemporalResnet(channels, config.n_frames))
        if heads is not None:
            self.attentions.append(SpatialTransformer(channels, heads, config))
            if config.use_temporal and temporal:
                self.tempo_attns.append(TemporalTransformer(channels, config))

    def layer(self, i: int, x: Tensor, emb: Tensor, text: Tensor) -> Tensor:
        """Layer i on x [b * f, c, h, w]."""
        x = self.resnets[i](x, emb)
        if self.conv3ds:
            x = self.conv3ds[i](x)
        if i < len(self.attentions):
            x = self.attentions[i](x, text)
        return self.tempo_attns[i](x, text) if self.tempo_attns else x


class DownBlock(Block):
    """`layers_per_block` layers and, but for the last block, a downsampler."""

    def __init__(self, config: UNetConfig, level: int) -> None:
        super().__init__(config)
        widths, channels = config.block_out_channels, config.block_out_channels[level]
        heads = config.attention_head_dim[level] if config.down_block_types[level].startswith("CrossAttn") else None
        for i in range(config.layers_per_block):
            self.add(widths[max(level - 1, 0)] if i == 0 else channels, channels, heads)
        self.downsamplers = nn.ModuleList([Downsample(channels)] if level < len(widths) - 1 else [])

    def forward(self, x: Tensor, emb: Tensor, text: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The block's output, and the skips: one a layer, one from the downsampler."""
        skips = []
        for i in range(len(self.resnets)):
            skips.append(x := self.layer(i, x, emb, text))
        for downsampler in self.downsamplers:
            skips.append(x := downsampler(x))
        return x, skips


class MidBlock(Block):
    """Two resnets around one spatial transformer; there is no temporal attention at the bottom."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        channels = config.block_out_channels[-1]
        self.add(channels, channels, config.attention_head_dim[-1], temporal=False)
        self.add(channels, channels)

    def forward(self, x: Tensor, emb: Tensor, text: Tensor) -> Tensor:
        return self.layer(1, self.layer(0, x, emb, text), emb, text)


class UpBlock(Block):
    """`layers_per_block` + 1 layers, each fed one skip, and, but for the last block, an upsampler."""

    def __init__(self, config: UNetConfig, index: int) -> None:
        super().__init__(config)
        widths, layers = config.block_out_channels[::-1], config.layers_per_block + 1
        channels, last_skip = widths[index], widths[min(index + 1, len(widths) - 1)]
        has_attention = config.up_block_types[index].startswith("CrossAttn")
        for i in range(layers):
            below = widths[max(index - 1, 0)] if i == 0 else channels
            skip = last_skip if i == layers - 1 else channels
            self.add(below + skip, channels, config.attention_head_dim[::-1][index] if has_attention else None)
        self.upsamplers = nn.ModuleList([Upsample(channels)] if index < len(widths) - 1 else [])

    def forward(self, x: Tensor, skips: list[Tensor], emb: Tensor, text: Tensor, size: Size | None) -> Tensor:
        """Takes its skips off the end of `skips`; size None doubles."""
        for i in range(len(self.resnets)):
            x = self.layer(i, torch.cat((x, skips.pop()), dim=1), emb, text)
        for upsampler in self.upsamplers:
            x = upsampler(x, size)
        return x


class PublishedUNet(nn.Module):
    """The U-Net with the published state-dict keys, dead parameters included.

    Args:
        config: keyword names of the published `config.json`; missing ones take the shipped model's values.

    Raises:
        UserError: for a setting outside the published family.
    """

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.config = settings = UNetConfig.from_dict(config or {})
        width, emb = settings.block_out_channels[0], settings.time_embed_dim
        self.conv_in = nn.Conv2d(settings.in_channels, width, 3, padding=1)
        self.time_embedding = ScalarEmbedding(width, emb)
        if settings.use_frame_stride_condition:
            self.frame_stride_embedding = ScalarEmbedding(width, emb)
            nn.init.zeros_(self.frame_stride_embedding.linear_2.weight)
            nn.init.zeros_(self.frame_stride_embedding.linear_2.bias)
        self.down_blocks = nn.ModuleList([DownBlock(settings, level) for level in range(settings.levels)])
        self.mid_block = MidBlock(settings)
        self.up_blocks = nn.ModuleList([UpBlock(settings, index) for index in range(settings.levels)])
        self.conv_norm_out = nn.GroupNorm(settings.norm_num_groups, width, eps=settings.norm_eps)
        self.conv_out = nn.Conv2d(width, settings.out_channels, 3, padding=1)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        first_frame_latents: Tensor | None = None,
        frame_stride: Tensor | float | None = None,
    ) -> Tensor:
        """Predict the noise of frames 1..f-1.

        Args:
            sample: [b, c, f - 1, h, w] noisy latents without frame 0.
            timestep: a number, a tensor of one element, or one value for each of the b * f frames.
            encoder_hidden_states: [b, n, context] text embeddings.
            first_frame_latents: [b, c, 1, h, w] clean latent of frame 0, already scaled.
            frame_stride: like `timestep`; needed when the model has the frame-stride condition.

        Returns:
            [b, c, f - 1, h, w] in the dtype of `sample`.

        Raises:
            UserError: for a frame count other than the model's, or a missing or ill-shaped input.
        """
        if first_frame_latents is None:
            raise UserError("first_frame_latents is missing; give frame 0's clean latent as (b, c, 1, h, w).")
        frames = self.config.n_frames
        video = torch.cat((first_frame_latents, sample), dim=2)
        batch, _, given, height, width = video.shape
        if given != frames:
            raise UserError(
                f"This U-Net takes {frames} frames including the first, so sample must have {frames - 1}, not "
                f"{sample.shape[2]}, beside one first frame, not {first_frame_latents.shape[2]}."
            )
        text = encoder_hidden_states.repeat_interleave(frames, dim=0)
        emb = self.time_embedding(self._sinusoid("timestep", timestep, batch * frames, sample))
        if self.config.use_frame_stride_condition:
            if frame_stride is None:
                raise UserError("frame_stride is missing; this U-Net is conditioned on it (the default is 3).")
            emb = emb + self.frame_stride_embedding(
                self._sinusoid("frame_stride", frame_stride, batch * frames, sample)
            )

        x = self.conv_in(video.transpose(1, 2).flatten(0, 1))
        skips = [x]
        for block in self.down_blocks:
            x, outputs = block(x, emb, text)
            skips += outputs
        x = self.mid_block(x, emb, text)

        factor = 2 ** (len(self.up_blocks) - 1)
        follow_skips = height % factor != 0 or width % factor != 0
        for block in self.up_blocks:
            size = None
            if follow_skips and block is not self.up_blocks[-1]:
                next_skip = skips[-self.config.layers_per_block - 2]
                size = (next_skip.shape[2], next_skip.shape[3])
            x = block(x, skips, emb, text, size)

        x = self.conv_out(F.silu(self.conv_norm_out(x)))
        return x.unflatten(0, (batch, frames)).transpose(1, 2)[:, :, 1:]

    def _sinusoid(self, name: str, value: Tensor | float, rows: int, sample: Tensor) -> Tensor:
        values = torch.as_tensor(value, device=sample.device).reshape(-1)
        if values.shape[0] not in (1, rows):
            raise UserError(
                f"{name} must be one number, or one for each of the {rows} frames of the batch, "
                f"not {values.shape[0]} numbers."
            )
        config = self.config
        shape = {"flip_sin_to_cos": config.flip_sin_to_cos, "freq_shift": config.freq_shift}
        return sinusoid(values.expand(rows), config.block_out_channels[0], **shape).to(sample.dtype)  # type: ignore[arg-type]
