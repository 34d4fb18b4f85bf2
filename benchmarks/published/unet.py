"""The published ConsistI2V U-Net (https://arxiv.org/abs/2402.04324) around Stable Diffusion 2.1's layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import UserError
from .blocks import DownBlock, MidBlock, UpBlock
from .config import UNetConfig
from .embeddings import ScalarEmbedding, sinusoid


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
        widths = settings.block_out_channels
        emb = 4 * widths[0]
        self.conv_in = nn.Conv2d(settings.in_channels, widths[0], 3, padding=1)
        self.time_embedding = ScalarEmbedding(widths[0], emb)
        if settings.use_frame_stride_condition:
            self.frame_stride_embedding = ScalarEmbedding(widths[0], emb)
            nn.init.zeros_(self.frame_stride_embedding.linear_2.weight)
            nn.init.zeros_(self.frame_stride_embedding.linear_2.bias)
        levels = range(len(widths))
        self.down_blocks = nn.ModuleList([DownBlock(settings, level) for level in levels])
        self.mid_block = MidBlock(settings)
        self.up_blocks = nn.ModuleList([UpBlock(settings, index) for index in levels])
        self.conv_norm_out = nn.GroupNorm(settings.norm_num_groups, widths[0], eps=settings.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], settings.out_channels, 3, padding=1)

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
            sample: (b, c, f - 1, h, w) noisy latents without frame 0.
            timestep: a number, a tensor of one element, or one value for each of the b * f frames.
            encoder_hidden_states: (b, n, context) text embeddings.
            first_frame_latents: (b, c, 1, h, w) clean latent of frame 0, already scaled.
            frame_stride: like `timestep`; needed when the model has the frame-stride condition.

        Returns:
            (b, c, f - 1, h, w) in the dtype of `sample`.

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
        emb = self._embed(timestep, frame_stride, batch * frames, sample)

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

    def _embed(
        self, timestep: Tensor | float, frame_stride: Tensor | float | None, rows: int, sample: Tensor
    ) -> Tensor:
        emb = self.time_embedding(self._sinusoid("timestep", timestep, rows, sample))
        if not self.config.use_frame_stride_condition:
            return emb
        if frame_stride is None:
            raise UserError("frame_stride is missing; this U-Net is conditioned on it (the default is 3).")
        return emb + self.frame_stride_embedding(self._sinusoid("frame_stride", frame_stride, rows, sample))

    def _sinusoid(self, name: str, value: Tensor | float, rows: int, sample: Tensor) -> Tensor:
        values = torch.as_tensor(value, device=sample.device).reshape(-1)
        if values.shape[0] not in (1, rows):
            raise UserError(
                f"{name} must be one number, or one for each of the {rows} frames of the batch, "
                f"not {values.shape[0]} numbers."
            )
        table = sinusoid(
            values.expand(rows),
            self.config.block_out_channels[0],
            flip_sin_to_cos=self.config.flip_sin_to_cos,
            freq_shift=self.config.freq_shift,
        )
        return table.to(sample.dtype)
