"""The published ConsistI2V U-Net (https://arxiv.org/abs/2402.04324) around Stable Diffusion 2.1's layers, which are
diffusers'; parameter names are those of the checkpoint.

Shapes: ``x`` is [b * f, c, h, w] in blocks and [b * f, h * w, c] in attentions; text is [b * f, n, context].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention import FeedForward
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from ...errors import UserError
from ...export.unet.config import TEMPORAL_NORM_GROUPS, UNetConfig

Size = tuple[int, int]

# Width of an embedding that was never fed to the temporal blocks; its projection is in every checkpoint.
_DEAD_EMBEDDING_WIDTH = 512


class RotaryEmbedding(nn.Module):
    """Rotary positions (https://arxiv.org/abs/2104.09864) on the first `dim` channels, before the head split.

    Adjacent channels (2i, 2i + 1) form a pair. The frequency table is a frozen parameter of the checkpoint.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        frequencies = 1.0 / 10000 ** (torch.arange(0, dim, 2).float() / dim)
        self.freqs = nn.Parameter(frequencies, requires_grad=False)

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rotate x [n, length, channels] by positions [length]; channels beyond the table pass through."""
        angles = (positions.to(self.freqs.dtype)[:, None] * self.freqs[None, :]).repeat_interleave(2, dim=-1)
        rotated, rest = x[..., : angles.shape[-1]], x[..., angles.shape[-1] :]
        even, odd = rotated.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack((-odd, even), dim=-1).flatten(-2)
        return torch.cat((rotated * angles.cos() + turned * angles.sin(), rest), dim=-1)


class SinusoidalPositions(nn.Module):
    """Additive positions, pe[p, 2k] = sin(p / 10000^(k / C)) and pe[p, 2k + 1] = cos of the same angle.

    The exponent is k / C, not the 2k / C of the transformer paper: the published model has it so. `dummy` is in
    the checkpoint and is never read.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.dummy = nn.Parameter(torch.zeros(1))

    def table(self, length: int, like: Tensor) -> Tensor:
        """[length, channels], computed in float32 and given in the dtype and on the device of `like`."""
        pairs = torch.arange(self.channels // 2, dtype=torch.float32, device=like.device)
        positions = torch.arange(length, dtype=torch.float32, device=like.device)
        angles = positions[:, None] / 10000 ** (pairs / self.channels)[None, :]
        return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2).to(like.dtype)


# -- attention ---------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Multi-head attention; q, k and v have no bias."""

    def __init__(self, channels: int, context_channels: int, heads: int, n_frames: int) -> None:
        super().__init__()
        self.heads, self.n_frames = heads, n_frames
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_channels, channels, bias=False)
        self.to_v = nn.Linear(context_channels, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [n, lq, c], k and v [n, lk, c] -> [n, lq, c], output projection included."""
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        return self.to_out[0](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class SpatialAttention(Attention):
    """Within a frame. Self-attention (no text) also sees frame 0, concatenated before the key and value projections."""

    def forward(self, x: Tensor, text: Tensor | None, size: Size) -> Tensor:
        context = text
        if context is None:
            first = x.unflatten(0, (-1, self.n_frames))[:, :1].repeat(1, self.n_frames, 1, 1).flatten(0, 1)
            context = torch.cat((x, first), dim=1)
        return self.attend(self.to_q(x), self.to_k(context), self.to_v(context))


class TemporalAttention(Attention):
    """Across frames, every spatial position on its own; positions enter as rotary or sinusoidal encoding."""

    def __init__(self, channels: int, context_channels: int, config: UNetConfig, *, window: bool) -> None:
        super().__init__(channels, context_channels, config.n_temp_heads, config.n_frames)
        self.window, self.rotary = window, config.temp_pos_embedding == "rotary"
        if self.rotary:
            # In the checkpoint; no forward pass reads it.
            self.rotary_bias = nn.ModuleDict({"relative_attention_bias": nn.Embedding(32, self.heads)})
            self.rotary_emb = RotaryEmbedding(channels // 2)
        else:
            self.pos_enc = SinusoidalPositions(channels)

    def forward(self, x: Tensor, text: Tensor | None, size: Size) -> Tensor:
        frames, area = self.n_frames, x.shape[1]
        tokens = x.unflatten(0, (-1, frames)).transpose(1, 2).flatten(0, 1)
        if not self.rotary:
            tokens = tokens + self.pos_enc.table(frames, x)
        context = tokens
        if text is not None:
            context = text[::frames].repeat_interleave(area, dim=0)
        elif self.window:
            near = first_frame_window(x[::frames], size)
            context = torch.cat((tokens, near if self.rotary else near + self.pos_enc.table(1, x)), dim=1)
        q, k, v = self.to_q(tokens), self.to_k(context), self.to_v(context)
        if self.rotary:
            q, k = self._rotate(q, k, is_text=text is not None)
        return self.attend(q, k, v).unflatten(0, (-1, area)).transpose(1, 2).flatten(0, 1)

    def _rotate(self, q: Tensor, k: Tensor, *, is_text: bool) -> tuple[Tensor, Tensor]:
        frames = torch.arange(self.n_frames, device=q.device)
        # The original tells the two attentions apart by length: a text as long as the clip is rotated.
        if not is_text or k.shape[1] == self.n_frames:
            at_first = frames.new_zeros(k.shape[1] - self.n_frames)
            k = self.rotary_emb.rotate(k, torch.cat((frames, at_first)))
        return self.rotary_emb.rotate(q, frames), k


def first_frame_window(first: Tensor, size: Size) -> Tensor:
    """Frame 0's tokens [b, h * w, c] at the eight neighbours of every position, replicated at the border.

    Returns:
        [b * h * w, 8, c], neighbours row by row without the centre.
    """
    image = first.transpose(1, 2).unflatten(-1, size)
    patches = F.unfold(F.pad(image, (1, 1, 1, 1), mode="replicate"), kernel_size=3)
    patches = patches.unflatten(1, (-1, 9)).permute(0, 3, 2, 1)
    return torch.cat((patches[:, :, :4], patches[:, :, 5:]), dim=2).flatten(0, 1)


# -- transformers ------------------------------------------------------------------------------------------------------


def gate(alpha: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """alpha * x + (1 - alpha) * y with alpha clamped to [0, 1]: a gate of 1 leaves the input x unchanged."""
    weight = torch.clamp(alpha, 0.0, 1.0)
    return weight * x + (1.0 - weight) * y


class TransformerBlock(nn.Module):
    """Self-attention, text cross-attention and feed-forward, each on a LayerNorm and with a residual."""

    def __init__(self, channels: int, attn1: Attention, attn2: Attention) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))
        self.attn1, self.attn2 = attn1, attn2
        self.ff = FeedForward(channels, activation_fn="geglu")

    def forward(self, x: Tensor, text: Tensor, size: Size) -> Tensor:
        x = self.attn1(self.norm1(x), None, size) + x
        x = self.attn2(self.norm2(x), text, size) + x
        return self.ff(self.norm3(x)) + x


class Transformer(nn.Module):
    """Image in, image out: per-frame GroupNorm, tokens, one block, residual."""

    def __init__(self, channels: int, groups: int, attn1: Attention, attn2: Attention) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, attn1, attn2)])
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """[b * f, c, h, w] -> the same shape."""
        size = (x.shape[2], x.shape[3])
        h = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))
        h = self.proj_out(self.transformer_blocks[0](h, text, size))
        return h.transpose(1, 2).unflatten(2, size).contiguous() + x


class SpatialTransformer(Transformer):
    """Attention within each frame, with frame 0 beside it."""

    def __init__(self, channels: int, heads: int, config: UNetConfig) -> None:
        attn1 = SpatialAttention(channels, channels, heads, config.n_frames)
        attn2 = SpatialAttention(channels, config.cross_attention_dim, heads, config.n_frames)
        super().__init__(channels, config.norm_num_groups, attn1, attn2)


class TemporalTransformer(Transformer):
    """Attention across frames; the gate mixes the result with the input."""

    def __init__(self, channels: int, config: UNetConfig) -> None:
        attn1 = TemporalAttention(channels, channels, config, window=config.augment_temporal_attention)
        attn2 = TemporalAttention(channels, config.cross_attention_dim, config, window=False)
        super().__init__(channels, config.norm_num_groups, attn1, attn2)
        self.alpha = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        return gate(self.alpha, x, super().forward(x, text))


class FrameConv(nn.Conv3d):
    """A (3, 1, 1) convolution over frames on [b * f, c, h, w]; before the first and after the last frame is zero."""

    def __init__(self, channels: int, n_frames: int) -> None:
        super().__init__(channels, channels, kernel_size=(3, 1, 1), padding=(1, 0, 0))
        self.n_frames = n_frames

    def forward(self, input: Tensor) -> Tensor:
        video = input.unflatten(0, (-1, self.n_frames)).transpose(1, 2)
        return super().forward(video).transpose(1, 2).flatten(0, 1)


class TemporalResnet(nn.Module):
    """Gated residual block over frames; GroupNorm is per frame, and the time embedding does not enter."""

    def __init__(self, channels: int, n_frames: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1))
        self.norm1 = nn.GroupNorm(TEMPORAL_NORM_GROUPS, channels, eps=1e-6)
        self.conv1 = FrameConv(channels, n_frames)
        self.time_emb_proj = nn.Linear(_DEAD_EMBEDDING_WIDTH, channels)
        self.norm2 = nn.GroupNorm(TEMPORAL_NORM_GROUPS, channels, eps=1e-6)
        self.conv2 = FrameConv(channels, n_frames)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return gate(self.alpha, x, x + self.conv2(F.silu(self.norm2(h))))


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
        shape = {"in_channels": in_channels, "out_channels": channels, "temb_channels": config.time_embed_dim}
        self.resnets.append(ResnetBlock2D(**shape, groups=config.norm_num_groups, eps=config.norm_eps))
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
        self.downsamplers = nn.ModuleList(
            [Downsample2D(channels, use_conv=True, name="op")] if level < len(widths) - 1 else []
        )

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
        self.upsamplers = nn.ModuleList([Upsample2D(channels, use_conv=True)] if index < len(widths) - 1 else [])

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
        self.time_embedding = TimestepEmbedding(width, emb)
        if settings.use_frame_stride_condition:
            self.frame_stride_embedding = TimestepEmbedding(width, emb)
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
        width, order = config.block_out_channels[0], config.flip_sin_to_cos
        table = get_timestep_embedding(values.expand(rows), width, order, config.freq_shift)
        return table.to(sample.dtype)  # type: ignore[no-any-return]
