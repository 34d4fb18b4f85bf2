"""The ConsistI2V video U-Net (Ren et al. 2024, arXiv:2402.04324) in an efficient, exportable form.

The published architecture and checkpoint keys; the same numbers for fewer operations: text keys and values once per
prompt, the first frame's keys and values projected once, phase convolutions after upsampling, gates folded, frame 0
dropped once nothing reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import KeyValue, TextAttention
from .blocks import DownBlock, Layers, MidBlock, TextKeyValues, UpBlock
from .config import UNetConfig
from .embeddings import ScalarEmbedding
from .gate import GatedResidual
from .resampling import Upsample
from .resnets import SpatialResnet
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

    def text_attentions(self) -> dict[str, TextAttention]:
        """Every text attention by the path of its transformer, in module order; layers dropped by their gate are left
        out.
        """
        readers = {
            path: module.text_attention
            for path, module in self.named_modules()
            if isinstance(module, SpatialTransformer)
            or (isinstance(module, TemporalTransformer) and not module.is_identity)
        }
        return {path: attention for path, attention in readers.items() if attention is not None}

    def text_key_values(self, encoder_hidden_states: Tensor) -> dict[str, KeyValue]:
        """The conditioning: keys and values of every text attention, once per prompt.

        Args:
            encoder_hidden_states: [b, length, cross_attention_dim].

        Returns:
            path -> (keys, values), each [b, heads, length, c / heads].
        """
        return {path: attention.key_values(encoder_hidden_states) for path, attention in self.text_attentions().items()}

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
        noise_pred, _ = self._predict(self._clip(sample, first_frame_latents), timestep, text, frame_stride)
        return noise_pred

    # -- feature caching -----------------------------------------------------------------------------------------------

    @property
    def skip_count(self) -> int:
        """Skip connections, conv_in's included: feature caching may cut at any but the last."""
        return len(self._up_layers())

    def denoise_and_keep(
        self,
        sample: Tensor,
        timestep: Scalar,
        text: TextKeyValues,
        first_frame_latents: Tensor | None,
        frame_stride: Scalar | None,
        branch: int,
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`denoise`, and the deep features for :meth:`denoise_from_features`.

        DeepCache (Ma et al. 2023, arXiv:2312.00858): what comes up from below skip `branch` changes little between
        neighbouring steps. Skip 0 is conv_in's output; the smaller the branch, the less a shallow step computes.

        Returns:
            noise_pred [b, c, f-1, h, w] and deep features [(b f), channels, h', w'], what is joined with that skip.

        Raises:
            ValueError: no such branch.
        """
        self._check_branch(branch)
        clip = self._clip(sample, first_frame_latents)
        return self._predict(clip, timestep, text, frame_stride, keep_at=branch)

    def denoise_from_features(
        self,
        sample: Tensor,
        timestep: Scalar,
        text: TextKeyValues,
        first_frame_latents: Tensor | None,
        frame_stride: Scalar | None,
        branch: int,
        deep_features: Tensor,
    ) -> Tensor:
        """A shallow step: only the layers above skip `branch`, the rest taken from an earlier full step."""
        self._check_branch(branch)
        clip = self._clip(sample, first_frame_latents)
        emb = F.silu(self._embed(timestep, frame_stride, clip.shape[0]))
        skips = list(islice(self._skips(clip, emb, text), branch + 1))
        x, _ = self._up(deep_features, skips, emb, text)
        return self._noise(x, clip.shape[0])

    def shallow_text_paths(self, branch: int) -> list[str]:
        """The transformers of a shallow step that read text, in module order."""
        self._check_branch(branch)
        down = [cast(DownBlock, block) for block in self.down_blocks]
        on_the_way_down = [
            (block, i) for block in down for i in (*range(len(block.resnets)), *[None] * len(block.downsamplers))
        ]
        layers = [*on_the_way_down[:branch], *self._up_layers()[-branch - 1 :]]
        prefixes = {f"{block.path}.{kind}.{i}" for block, i in layers for kind in ("attentions", "tempo_attns")}
        return [path for path in self.text_attentions() if path in prefixes]

    def skip_level(self, branch: int) -> int:
        """How often the latents' size is halved at a skip."""
        levels = [0]
        for level, block in enumerate(cast(DownBlock, block) for block in self.down_blocks):
            levels += [level] * len(block.resnets) + [level + 1] * len(block.downsamplers)
        return levels[branch]

    def deep_feature_shape(self, branch: int, height: int, width: int) -> tuple[int, int, int]:
        """Channels, height and width of the deep features for latents of a size."""
        self._check_branch(branch)
        block, i = self._up_layers()[-branch - 2]
        channels = cast(SpatialResnet, block.resnets[i]).conv2.out_channels
        for _ in range(self.skip_level(branch)):
            height, width = -(-height // 2), -(-width // 2)
        return channels, height, width

    def _check_branch(self, branch: int) -> None:
        if not 0 <= branch < self.skip_count - 1:
            raise ValueError(
                f"Cache branch {branch} is not possible: this model has {self.skip_count} skips, "
                f"give 0 to {self.skip_count - 2}."
            )

    # -- the parts of a forward ----------------------------------------------------------------------------------------

    def _clip(self, sample: Tensor, first_frame_latents: Tensor | None) -> Tensor:
        """[b, f, c, h, w]: the first frame before the noisy ones."""
        self._check_clip(sample, first_frame_latents)
        assert first_frame_latents is not None
        return torch.cat([first_frame_latents, sample], dim=2).transpose(1, 2)

    def _predict(
        self,
        clip: Tensor,
        timestep: Scalar,
        text: TextKeyValues,
        frame_stride: Scalar | None,
        keep_at: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        emb = F.silu(self._embed(timestep, frame_stride, clip.shape[0]))
        skips = list(self._skips(clip, emb, text))
        x = self.mid_block(skips[-1], emb, text)
        x, kept = self._up(x, skips, emb, text, keep_at)
        return self._noise(x, clip.shape[0]), kept

    def _skips(self, clip: Tensor, emb: Tensor, text: TextKeyValues) -> Iterator[Tensor]:
        """Every skip from conv_in down, each computed when asked for; the last is the deepest feature map."""
        x = self.conv_in(clip.flatten(0, 1))
        yield x
        for down in self.down_blocks:
            for skip in cast(DownBlock, down).skips(x, emb, text):
                x = skip
                yield x

    def _up_layers(self) -> list[tuple[UpBlock, int]]:
        """Every layer of the way up; the one that takes skip k is the (k+1)-th from the end."""
        blocks = [cast(UpBlock, up) for up in self.up_blocks]
        return [(block, i) for block in blocks for i in range(len(block.resnets))]

    def _up(
        self, x: Tensor, skips: list[Tensor], emb: Tensor, text: TextKeyValues, keep_at: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """The last layers of the way up, as many as there are skips; also x as it was before skip `keep_at`."""
        kept = x
        for block, i in self._up_layers()[-len(skips) :]:
            if len(skips) - 1 == keep_at:
                kept = x
            x = block.layer(i, x, skips, emb, text)
        return x, kept

    def _noise(self, x: Tensor, batch: int) -> Tensor:
        # Nothing reads frame 0 any more: its output is not part of the result.
        x = x.unflatten(0, (batch, self.config.n_frames))[:, 1:].flatten(0, 1)
        x = self.conv_out(F.silu(self.conv_norm_out(x)))
        return x.unflatten(0, (batch, self.config.n_frames - 1)).transpose(1, 2)

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
