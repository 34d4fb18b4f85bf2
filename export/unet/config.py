"""The video U-Net's configuration: the keyword names of the published constructor, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ...runtime.errors import UserError

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
# The temporal resnets normalise over this many groups whatever norm_num_groups says.
TEMPORAL_NORM_GROUPS = 32


@dataclass(frozen=True)
class UNetConfig:
    """Shape of the video U-Net. The defaults are the published model (Stable Diffusion 2.1 widths, 16 frames)."""

    sample_size: int | None = 32
    """Latent height and width the model was trained at; informative only."""
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
                    f"U-Net option {name}={value!r} is not supported: it must be {allowed}, as in the published model."
                )
            if name in known:
                values[name] = tuple(value) if isinstance(value, list) else value
            elif name not in _FIXED and not name.startswith("_") and value:
                raise UserError(f"U-Net option {name}={value!r} is unknown: remove it or switch it off.")
        heads, widths = values.get("attention_head_dim"), values.get("block_out_channels", cls.block_out_channels)
        if isinstance(heads, int) and isinstance(widths, tuple):
            values["attention_head_dim"] = (heads,) * len(widths)
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

    def check(self) -> None:
        """Raise :class:`UserError` where sizes do not fit together."""
        for name, allowed in (("down_block_types", _DOWN_BLOCKS), ("up_block_types", _UP_BLOCKS)):
            for kind in getattr(self, name):
                if kind not in allowed:
                    raise UserError(f"U-Net option {name} names {kind!r}: only {' and '.join(allowed)} are supported.")
        for name in ("down_block_types", "up_block_types", "attention_head_dim"):
            if len(getattr(self, name)) != self.levels:
                raise UserError(
                    f"U-Net option {name} has {len(getattr(self, name))} entries, but block_out_channels has "
                    f"{self.levels}: give one per level."
                )
        if self.temp_pos_embedding not in ("rotary", "sinusoidal"):
            raise UserError(
                f"U-Net option temp_pos_embedding={self.temp_pos_embedding!r}: it must be 'rotary' or 'sinusoidal'."
            )
        if self.n_frames < 2:
            raise UserError(
                f"U-Net option n_frames={self.n_frames}: a clip has at least 2 frames, the first frame included."
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


def _check_kind(name: str, value: object, default: object) -> None:
    """Refuse a value of another kind than the published one, and sizes below 1."""
    if name == "sample_size":
        return
    if isinstance(default, tuple):
        allowed = isinstance(value, tuple) and value and all(_is_like(item, default[0]) for item in value)
    else:
        allowed = _is_like(value, default)
    if not allowed:
        shown = list(default) if isinstance(default, tuple) else default
        raise UserError(f"U-Net option {name}={value!r} is not possible: give a value like the published {shown!r}.")


def _is_like(value: object, default: object) -> bool:
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, int) and default > 0:
        return isinstance(value, int) and value >= 1
    if isinstance(default, int | float):
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, type(default))
