"""Sizes of the demo model: one for training on a processor, one for training on a GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ....errors import UserError


@dataclass(frozen=True)
class Preset:
    """Everything that defines a training besides its data and its time."""

    name: str
    size: int
    """Pixels of a frame's side."""
    frames: int
    vae_widths: tuple[int, ...]
    vae_layers: int
    vae_batch: int
    vae_learning_rate: float
    train_encoder: bool
    """Train the encoder too; else it stays the linear one it starts as, and latents do not change."""
    text_width: int
    text_layers: int
    text_steps: int
    """Steps of the text encoder's own training, before the U-Net's."""
    unet_widths: tuple[int, ...]
    unet_layers: int
    unet_heads: tuple[int, ...]
    temporal_heads: int
    norm_groups: int
    clips: int
    """Encoded training clips kept; each is seen several times, with new noise."""
    validation_clips: int
    """Held-out clips on which the loss is measured before and after."""
    batch: int
    learning_rate: float

    @property
    def vae_factor(self) -> int:
        return int(2 ** (len(self.vae_widths) - 1))

    def unet_config(self) -> dict[str, Any]:
        """Keyword names of the published constructor, every feature on."""
        levels = len(self.unet_widths)
        return {
            "sample_size": self.size // self.vae_factor,
            "block_out_channels": list(self.unet_widths),
            # Attention at every level: the finest is where the first frame is looked at.
            "down_block_types": ["CrossAttnDownBlock2D"] * levels,
            "up_block_types": ["CrossAttnUpBlock2D"] * levels,
            "attention_head_dim": list(self.unet_heads),
            "layers_per_block": self.unet_layers,
            "norm_num_groups": self.norm_groups,
            "cross_attention_dim": self.text_width,
            "n_temp_heads": self.temporal_heads,
            "n_frames": self.frames,
            "augment_temporal_attention": True,
            "temp_pos_embedding": "rotary",
            "use_frame_stride_condition": True,
        }


_CPU = Preset(
    name="cpu",
    size=64,
    frames=16,
    vae_widths=(16, 32, 64),
    vae_layers=1,
    vae_batch=8,
    vae_learning_rate=2e-3,
    train_encoder=False,
    text_width=32,
    text_layers=2,
    text_steps=1500,
    unet_widths=(64, 64),
    unet_layers=1,
    unet_heads=(1, 2),
    temporal_heads=2,
    norm_groups=1,
    clips=600,
    validation_clips=32,
    batch=2,
    learning_rate=1e-4,
)
PRESETS = {
    "cpu": _CPU,
    "gpu": replace(
        _CPU,
        name="gpu",
        size=128,
        vae_widths=(32, 64, 96, 128),
        vae_layers=2,
        vae_batch=64,
        vae_learning_rate=1e-3,
        train_encoder=True,
        unet_widths=(128, 128),
        clips=20000,
        batch=32,
        learning_rate=1e-4,
    ),
    # For tests: trains a few steps in seconds.
    "tiny": replace(
        _CPU,
        name="tiny",
        size=16,
        vae_widths=(16, 32, 64),
        vae_batch=2,
        text_width=16,
        text_steps=2,
        clips=4,
        validation_clips=2,
        batch=2,
    ),
}


def preset(name: str, size: int | None = None) -> Preset:
    """A preset, at another frame size where one is given.

    Raises:
        UserError: no such preset, or a size that the levels do not divide.
    """
    if name not in PRESETS:
        raise UserError(f"preset {name!r} is unknown: choose {', '.join(PRESETS)}.")
    chosen = PRESETS[name] if size is None else replace(PRESETS[name], size=size)
    multiple = chosen.vae_factor * 2 ** (len(chosen.unet_widths) - 1)
    if chosen.size < multiple or chosen.size % multiple:
        raise UserError(f"size {chosen.size} does not fit preset {name}: give a multiple of {multiple} pixels.")
    return chosen
