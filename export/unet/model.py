"""The ConsistI2V video U-Net (Ren et al. 2024, arXiv:2402.04324) in an efficient, exportable form.

The published architecture and checkpoint keys; the same numbers for fewer operations: text keys and values once per
prompt, the first frame's keys and values projected once, phase convolutions after upsampling, gates folded, frame 0
dropped once nothing reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import KeyValue
from .blocks import DownBlock, Layers, MidBlock, TextKeyValues, UpBlock
from .config import UNetConfig
from .embeddings import ScalarEmbedding
from .gate import GatedResidual
from .resampling import Upsample
from .state_dict import check_state_dict
from .transformers import SpatialTransformer, TemporalTransformer

Scalar = int | float | Tensor


class VideoUNet(nn.Module):
    """Predicts the noise of frames 1.. of a clip from noisy latents, the clean first frame, a timestep and a text.

    Example:
        >>> unet = VideoUNet.from_config({"block_out_channels": [32, 64], ...})
        >>> unet(sample, 981, text, first_frame_latents=first, frame_stride=3).shape  # sample.shape
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.block_out_channels
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        sinusoid = (widths[0], config.time_embed_dim, config.flip_sin_to_cos, config.freq_shift)
        self.time_embedding = ScalarEmbedding(*sinusoid)
        self.frame_stride_embedding = ScalarEmbedding(*sinusoid) if config.use_frame_stride_condition else None
        if self.frame_stride_embedding is not None:
            # As published: training starts from the image model, which knows no stride.
            nn.init.zeros_(self.frame_stride_embedding.linear_2.weight)
            nn.init.zeros_(self.frame_stride_embedding.linear_2.bias)
        self.down_blocks = nn.ModuleList()
        skip_channels = [widths[0]]
        for i, kind in enumerate(config.down_block_types):
            last = i == config.levels - 1
            attention = kind == "CrossAttnDownBlock2D"
            heads = config.attention_head_dim[i]
            block = DownBlock(config, widths[max(i - 1, 0)], widths[i], heads, attention, downsample=not last)
            skip_channels += [widths[i]] * (config.layers_per_block + (not last))
            self.down_blocks.append(block)
        self.mid_block = MidBlock(config, widths[-1], config.attention_head_dim[-1])
        self.up_blocks = nn.ModuleList()
        previous = widths[-1]
        for i, kind in enumerate(config.up_block_types):
            level = config.levels - 1 - i
            skips = [skip_channels.pop() for _ in range(config.layers_per_block + 1)]
            attention = kind == "CrossAttnUpBlock2D"
            heads = config.attention_head_dim[level]
            self.up_blocks.append(UpBlock(config, previous, widths[level], skips, heads, attention, upsample=level > 0))
            previous = widths[level]
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[0], eps=config.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)
        for path, module in self.named_modules():
            if isinstance(module, Layers):
                module.path = path

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | UNetConfig) -> VideoUNet:
        """Build from the keyword names of the published constructor; see :class:`UNetConfig`."""
        return cls(config if isinstance(config, UNetConfig) else UNetConfig.from_dict(config))

    # -- weights -------------------------------------------------------------------------------------------------------

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load published weights; keys that the published forward never reads may be absent.

        Raises:
            UserError: keys are unknown or missing (named), or a shape differs.
        """
        complete = check_state_dict(self, state_dict) if strict else state_dict
        for module in self.modules():
            if isinstance(module, GatedResidual):
                module.unfold_gate()
            elif isinstance(module, Upsample):
                module.reset()
        return super().load_state_dict(complete, strict=strict, assign=assign)

    def prepare_for_inference(self) -> VideoUNet:
        """Fold the gates and compute the phase kernels, in place, once. Returns self, in evaluation mode."""
        for module in self.modules():
            if isinstance(module, GatedResidual):
                module.fold_gate()
            elif isinstance(module, Upsample):
                module.prepare()
        return self.eval().requires_grad_(False)

    # -- text ----------------------------------------------------------------------------------------------------------

    def text_transformers(self) -> dict[str, SpatialTransformer | TemporalTransformer]:
        """Every transformer that reads text, by path, in module order; layers dropped by their gate are left out."""
        return {
            path: module
            for path, module in self.named_modules()
            if isinstance(module, SpatialTransformer)
            or (isinstance(module, TemporalTransformer) and not module.is_identity)
        }

    def text_key_values(self, encoder_hidden_states: Tensor) -> dict[str, KeyValue]:
        """The conditioning: keys and values of every text attention, once per prompt.

        Args:
            encoder_hidden_states: [b, length, cross_attention_dim].

        Returns:
            path -> (keys, values), each [b, heads, length, c / heads].
        """
        return {
            path: transformer.text_attention.key_values(encoder_hidden_states)
            for path, transformer in self.text_transformers().items()
        }

    # -- forward -------------------------------------------------------------------------------------------------------

    def forward(
        self,
        sample: Tensor,
        timestep: Scalar,
        encoder_hidden_states: Tensor,
        first_frame_latents: Tensor | None = None,
        frame_stride: Scalar | None = None,
    ) -> Tensor:
        """Published signature.

        Args:
            sample: [b, c, f-1, h, w] noisy latents without the first frame.
            timestep: a number, or [1], [b] or [b*f].
            encoder_hidden_states: [b, length, cross_attention_dim].
            first_frame_latents: [b, c, 1, h, w] clean latents of the first frame.
            frame_stride: frames of the source video between two frames; like `timestep`.

        Returns:
            [b, c, f-1, h, w].

        Raises:
            ValueError: frames or batch do not fit the model; nothing is mixed silently.
        """
        text = self.text_key_values(encoder_hidden_states)
        if encoder_hidden_states.shape[0] != sample.shape[0]:
            raise ValueError(
                f"{encoder_hidden_states.shape[0]} texts for {sample.shape[0]} clips: give one text per clip."
            )
        return self.denoise(sample, timestep, text, first_frame_latents, frame_stride)

    def denoise(
        self,
        sample: Tensor,
        timestep: Scalar,
        text: TextKeyValues,
        first_frame_latents: Tensor | None,
        frame_stride: Scalar | None,
    ) -> Tensor:
        """As :meth:`forward`, from keys and values of :meth:`text_key_values`: what one step of the loop runs."""
        self._check_clip(sample, first_frame_latents)
        assert first_frame_latents is not None
        batch, frames = sample.shape[0], self.config.n_frames
        emb = F.silu(self._embed(timestep, frame_stride, batch))
        clip = torch.cat([first_frame_latents, sample], dim=2)
        x = self.conv_in(clip.transpose(1, 2).flatten(0, 1))
        skips = [x]
        for down in self.down_blocks:
            x, block_skips = down(x, emb, text)
            skips += block_skips
        x = self.mid_block(x, emb, text)
        for up in self.up_blocks:
            x = up(x, skips, emb, text)
        # Nothing reads frame 0 any more: its output is not part of the result.
        x = x.unflatten(0, (batch, frames))[:, 1:].flatten(0, 1)
        x = self.conv_out(F.silu(self.conv_norm_out(x)))
        return x.unflatten(0, (batch, frames - 1)).transpose(1, 2)

    def _check_clip(self, sample: Tensor, first_frame_latents: Tensor | None) -> None:
        frames = self.config.n_frames
        if first_frame_latents is None:
            raise ValueError(
                "first_frame_latents is missing: the model is conditioned on the clean first frame [b, c, 1, h, w]."
            )
        if sample.ndim != 5 or sample.shape[2] != frames - 1 or first_frame_latents.shape[2] != 1:
            raise ValueError(
                f"sample {tuple(sample.shape)} with first_frame_latents {tuple(first_frame_latents.shape)}: this model "
                f"takes [b, c, {frames - 1}, h, w] and [b, c, 1, h, w], {frames} frames with the first."
            )

    def _embed(self, timestep: Scalar, frame_stride: Scalar | None, batch: int) -> Tensor:
        """Timestep plus stride embedding: [1, embed] for scalars (all rows equal), else [(b f), embed]."""
        emb = self._embed_scalar(self.time_embedding, timestep, batch)
        if self.frame_stride_embedding is not None:
            if frame_stride is None:
                raise ValueError("frame_stride is missing: this model is conditioned on it (published default 3).")
            emb = emb + self._embed_scalar(self.frame_stride_embedding, frame_stride, batch)
        return emb

    def _embed_scalar(self, embedding: ScalarEmbedding, value: Scalar, batch: int) -> Tensor:
        values = torch.as_tensor(value, device=self.conv_in.weight.device).reshape(-1)
        rows, frames = values.shape[0], self.config.n_frames
        if rows not in (1, batch, batch * frames):
            raise ValueError(
                f"{rows} timesteps or strides for {batch} clips of {frames} frames: "
                f"give 1, {batch} or {batch * frames}."
            )
        emb: Tensor = embedding(values)
        return emb.repeat_interleave(frames, dim=0) if rows == batch and rows != 1 else emb
