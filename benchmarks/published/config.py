"""Constructor keywords of the published U-Net, with the shipped model as defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ...errors import UserError

# Settings of the original that the shipped model never uses, with the one value this baseline knows.
_FIXED: dict[str, Any] = {
    "center_input_sample": False,
    "only_cross_attention": False,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "dual_cross_attention": False,
    "use_linear_projection": True,
    "first_frame_condition_mode": "concat",
}
# Says what size the model was trained at; the network itself takes any.
_IGNORED = ("sample_size",)
_WITH_ATTENTION = {
    "CrossAttnDownBlock2D": True,
    "DownBlock2D": False,
    "CrossAttnUpBlock2D": True,
    "UpBlock2D": False,
}
# Groups of the temporal residual blocks' GroupNorm, whatever `norm_num_groups` says.
TEMPORAL_GROUPS = 32


@dataclass(frozen=True)
class UNetConfig:
    """The published keyword names; `attention_head_dim` is the NUMBER of heads of each level, as in old diffusers."""

    in_channels: int = 4
    out_channels: int = 4
    flip_sin_to_cos: bool = True
    freq_shift: float = 0
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: tuple[str, ...] = ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3)
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    downsample_padding: int = 1
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 1024
    attention_head_dim: tuple[int, ...] = (5, 10, 20, 20)
    use_temporal: bool = True
    n_frames: int = 16
    n_temp_heads: int = 8
    augment_temporal_attention: bool = True
    temp_pos_embedding: str = "rotary"
    use_frame_stride_condition: bool = True

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> UNetConfig:
        """Read the keyword names of a published `config.json`; keys starting with an underscore are ignored.

        Raises:
            UserError: for a key or value outside the published first-frame-"concat" family.
        """
        names = {field.name for field in fields(cls)}
        values: dict[str, Any] = {}
        for key, value in config.items():
            if key in names:
                values[key] = tuple(value) if isinstance(value, list) else value
            elif key in _FIXED:
                if value != _FIXED[key]:
                    raise UserError(f"The published baseline needs {key}={_FIXED[key]!r}, not {value!r}.")
            elif not (key in _IGNORED or key.startswith("_") or value is None or value is False):
                raise UserError(f"The published baseline has no setting {key!r}; leave it out.")
        levels = len(values.get("block_out_channels", cls.block_out_channels))
        if isinstance(values.get("attention_head_dim"), int):
            values["attention_head_dim"] = (values["attention_head_dim"],) * levels
        return cls(**values)

    def __post_init__(self) -> None:
        levels = len(self.block_out_channels)
        for key in ("down_block_types", "up_block_types", "attention_head_dim"):
            if len(getattr(self, key)) != levels:
                raise UserError(
                    f"{key} must have one entry for each of the {levels} levels in block_out_channels, "
                    f"not {len(getattr(self, key))}."
                )
        for name in (*self.down_block_types, *self.up_block_types):
            if name not in _WITH_ATTENTION:
                raise UserError(f"Unknown block type {name!r}; allowed: {', '.join(_WITH_ATTENTION)}.")
        if self.temp_pos_embedding not in ("rotary", "sinusoidal"):
            raise UserError(f"temp_pos_embedding must be rotary or sinusoidal, not {self.temp_pos_embedding!r}.")
        for width, heads in zip(self.block_out_channels, self.attention_head_dim, strict=True):
            self._check_width(width, heads)

    def _check_width(self, width: int, heads: int) -> None:
        divisors = {"norm_num_groups": self.norm_num_groups, "the number of heads": heads}
        if self.use_temporal:
            divisors["the temporal GroupNorm's groups"] = TEMPORAL_GROUPS
            divisors["n_temp_heads"] = self.n_temp_heads
        for what, divisor in divisors.items():
            if width % divisor:
                raise UserError(f"The width {width} in block_out_channels must be a multiple of {what} ({divisor}).")

    def down_has_attention(self, level: int) -> bool:
        """Whether down block `level` (0 = full size) has spatial and temporal attention."""
        return _WITH_ATTENTION[self.down_block_types[level]]

    def up_has_attention(self, index: int) -> bool:
        """Whether up block `index` (0 = smallest) has spatial and temporal attention."""
        return _WITH_ATTENTION[self.up_block_types[index]]
