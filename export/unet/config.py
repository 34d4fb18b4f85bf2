"""The video U-Net's configuration: the keyword names of the published constructor, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ...errors import UserError, shown
from ..config_values import (
    MAX_FRAMES,
    MAX_LAYERS,
    MAX_LEVELS,
    MAX_SAMPLE_SIZE,
    MAX_WIDTH,
    check_parameters,
    is_finite_number,
)

# Options of the published constructor that this U-Net does not have. They may appear in a configuration as long as
# they are off, or at the one value the architecture uses; anything else would change results silently.
_FIXED: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu",),
    "downsample_padding": (1,),
    "mid_block_scale_factor": (1,),
    "use_linear_projection": (True,),
    "first_frame_condition_mode": ("concat",),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "time_embedding_type": ("positional",),
    "resnet_time_scale_shift": ("default",),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "transformer_layers_per_block": (1,),
    "resnet_out_scale_factor": (1,),
    "use_temporal": (True, False),
    "num_attention_heads": (None,),
}
_DOWN_BLOCKS = ("CrossAttnDownBlock2D", "DownBlock2D")
_UP_BLOCKS = ("CrossAttnUpBlock2D", "UpBlock2D")
# Largest sizes; a real model is far below, and one far above could not be built. Options not named: MAX_WIDTH.
_LARGEST = {"layers_per_block": MAX_LAYERS, "n_frames": MAX_FRAMES}
# The temporal resnets normalise over this many groups whatever norm_num_groups says.
TEMPORAL_NORM_GROUPS = 32


@dataclass(frozen=True)
class UNetConfig:
    """Shape of the video U-Net. The defaults are the published model (Stable Diffusion 2.1 widths, 16 frames)."""

    sample_size: int | tuple[int, ...] | None = 32
    """Latent height and width the model was trained at, one number where they are equal: the default size of an
    export."""
    in_channels: int = 4
    out_channels: int = 4
    flip_sin_to_cos: bool = True
    """Timestep sinusoid as [cos, sin] (the published order) rather than [sin, cos]."""
    freq_shift: float = 0
    down_block_types: tuple[str, ...] = (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D")
    up_block_types: tuple[str, ...] = ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3)
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 1024
    attention_head_dim: tuple[int, ...] = (5, 10, 20, 20)
    """NUMBER of spatial attention heads per level (old diffusers naming)."""
    use_temporal: bool = True
    n_frames: int = 16
    """Frames of one clip, the first frame included."""
    n_temp_heads: int = 8
    augment_temporal_attention: bool = True
    """Temporal keys and values also see the first frame's 3x3 neighbourhood (8 positions)."""
    temp_pos_embedding: str = "rotary"
    use_frame_stride_condition: bool = True

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> UNetConfig:
        """Read the keyword names of the published constructor.

        Missing names take the published model's values. Names this U-Net has no counterpart for are accepted only
        when they are off.

        Raises:
            UserError: an option is on that would change the result, or sizes do not fit together.
        """
        known = {f.name for f in fields(cls)}
        values: dict[str, Any] = {}
        for name, value in config.items():
            if name in _FIXED and value not in _FIXED[name]:
                allowed = " or ".join(repr(v) for v in _FIXED[name])
                raise UserError(
                    f"U-Net option {name}={shown(value)} is not supported: it must be {allowed}, as in the published "
                    "model."
                )
            if name in known:
                values[name] = tuple(value) if isinstance(value, list) else value
            elif name not in _FIXED and not name.startswith("_") and value:
                raise UserError(f"U-Net option {shown(name)}={shown(value)} is unknown: remove it or switch it off.")
        heads, widths = values.get("attention_head_dim"), values.get("block_out_channels", cls.block_out_channels)
        if isinstance(heads, int) and isinstance(widths, tuple):
            values["attention_head_dim"] = (heads,) * min(len(widths), MAX_LEVELS)
        for name, value in values.items():
            _check_kind(name, value, getattr(cls, name))
        result = cls(**values)
        result.check()
        return result

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; ``from_dict`` reads it back."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @property
    def levels(self) -> int:
        return len(self.block_out_channels)

    @property
    def time_embed_dim(self) -> int:
        return 4 * self.block_out_channels[0]

    @property
    def sample_sides(self) -> tuple[int, int] | None:
        """Latent height and width the model was trained at, where the configuration says so."""
        if self.sample_size is None:
            return None
        sides = self.sample_size if isinstance(self.sample_size, tuple) else (self.sample_size, self.sample_size)
        return sides[0], sides[1]

    @property
    def skip_count(self) -> int:
        """Skip connections, conv_in's included."""
        return self.levels * (self.layers_per_block + 1)

    @property
    def parameters(self) -> int:
        """Weights of the convolutions and linear layers, about: norms and biases are left out."""
        embed, text = self.time_embed_dim, self.cross_attention_dim

        def resnet(before: int, after: int) -> int:
            temporal = 6 * after**2 + 512 * after if self.use_temporal else 0
            shortcut = before * after if before != after else 0
            return 9 * (before * after + after**2) + embed * after + shortcut + temporal

        def transformer(width: int) -> int:
            # Projections, self-attention, feed-forward; then the text attention.
            return 18 * width**2 + 2 * (width + text) * width

        def block(pairs: list[tuple[int, int]], kind: str, resampled: bool) -> int:
            width = pairs[0][1]
            transformers = len(pairs) * (1 + self.use_temporal) if kind.startswith("CrossAttn") else 0
            layers = sum(resnet(*pair) for pair in pairs) + transformers * transformer(width)
            return layers + (9 * width**2 if resampled else 0)

        widths, last = self.block_out_channels, self.levels - 1
        skips = [widths[0]]
        embeddings = (widths[0] + embed) * embed * (1 + self.use_frame_stride_condition)
        total = 9 * (self.in_channels + self.out_channels) * widths[0] + embeddings
        for i, kind in enumerate(self.down_block_types):
            pairs = [
                (widths[max(i - 1, 0)] if layer == 0 else widths[i], widths[i])
                for layer in range(self.layers_per_block)
            ]
            total += block(pairs, kind, i < last)
            skips += [widths[i]] * (self.layers_per_block + (i < last))
        total += 2 * resnet(widths[-1], widths[-1]) + transformer(widths[-1])
        previous = widths[-1]
        for i, kind in enumerate(self.up_block_types):
            width = widths[last - i]
            pairs = [((previous if n == 0 else width) + skips.pop(), width) for n in range(self.layers_per_block + 1)]
            total += block(pairs, kind, i < last)
            previous = width
        return total

    def check(self) -> None:
        """Raise :class:`UserError` where sizes do not fit together."""
        for name, allowed in (("down_block_types", _DOWN_BLOCKS), ("up_block_types", _UP_BLOCKS)):
            for kind in getattr(self, name):
                if kind not in allowed:
                    raise UserError(
                        f"U-Net option {name} names {shown(kind)}: only {' and '.join(allowed)} are supported."
                    )
        for name in ("down_block_types", "up_block_types", "attention_head_dim"):
            if len(getattr(self, name)) != self.levels:
                raise UserError(
                    f"U-Net option {name} has {len(getattr(self, name))} entries, but block_out_channels has "
                    f"{self.levels}: give one per level."
                )
        if self.temp_pos_embedding not in ("rotary", "sinusoidal"):
            raise UserError(
                f"U-Net option temp_pos_embedding={shown(self.temp_pos_embedding)}: it must be 'rotary' or "
                "'sinusoidal'."
            )
        if self.n_frames < 2:
            raise UserError(
                f"U-Net option n_frames={self.n_frames}: a clip has at least 2 frames, the first frame included."
            )
        if not 0 < self.norm_eps <= 0.1:
            raise UserError(f"U-Net option norm_eps={self.norm_eps} is not possible: give a number above 0, up to 0.1.")
        if self.block_out_channels[0] % 2 or not 0 <= self.freq_shift < self.block_out_channels[0] / 2:
            raise UserError(
                f"U-Net option freq_shift={self.freq_shift} does not fit the first width {self.block_out_channels[0]}: "
                "the width must be even, and freq_shift from 0 to below half of it."
            )
        for width, heads in zip(self.block_out_channels, self.attention_head_dim, strict=True):
            if width % self.norm_num_groups:
                raise UserError(f"U-Net width {width} is not a multiple of norm_num_groups={self.norm_num_groups}.")
            if width % heads:
                raise UserError(f"U-Net width {width} cannot be split into {heads} spatial attention heads.")
            if self.use_temporal and width % TEMPORAL_NORM_GROUPS:
                raise UserError(
                    f"U-Net width {width} is not a multiple of {TEMPORAL_NORM_GROUPS}, which the temporal layers need."
                )
            if self.use_temporal and width % self.n_temp_heads:
                raise UserError(
                    f"U-Net width {width} cannot be split into n_temp_heads={self.n_temp_heads} "
                    "temporal attention heads."
                )
        check_parameters("U-Net", self.parameters)


def _check_kind(name: str, value: object, default: object) -> None:
    """Refuse a value of another kind than the published one, and sizes that no model has."""
    largest = _LARGEST.get(name, MAX_WIDTH)
    if name == "sample_size":
        sides = value if isinstance(value, tuple) else (value, value)
        allowed = value is None or (len(sides) == 2 and all(_is_like(side, 1, MAX_SAMPLE_SIZE) for side in sides))
        if not allowed:
            raise UserError(
                f"U-Net option sample_size={shown(value)} is not possible: give a whole number from 1 to "
                f"{MAX_SAMPLE_SIZE}, [height, width], or null."
            )
        return
    if isinstance(default, tuple):
        if isinstance(value, tuple) and len(value) > MAX_LEVELS:
            raise UserError(f"U-Net option {name} has {len(value)} entries: a U-Net has at most {MAX_LEVELS} levels.")
        allowed = isinstance(value, tuple) and bool(value) and all(_is_like(v, default[0], largest) for v in value)
    else:
        allowed = _is_like(value, default, largest)
    if not allowed:
        published = list(default) if isinstance(default, tuple) else default
        limit = f", up to {largest}" if _is_size(default) else ""
        raise UserError(
            f"U-Net option {name}={shown(value)} is not possible: give a value like the published {published!r}{limit}."
        )


def _is_size(default: object) -> bool:
    default = default[0] if isinstance(default, tuple) else default
    return isinstance(default, int) and not isinstance(default, bool) and default > 0


def _is_like(value: object, default: object, largest: int) -> bool:
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, int) and default > 0:
        return isinstance(value, int) and 1 <= value <= largest
    if isinstance(default, int | float):
        return is_finite_number(value)
    return isinstance(value, type(default))
