"""The configurations of the VAE and the text encoder: what the export needs of them, checked without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UserError, shown
from .config_values import MAX_LAYERS, MAX_WIDTH, ConfigValues, check_parameters

# The text encoder is run on so many tokens.
TEXT_LENGTH = 77


@dataclass(frozen=True)
class VaeConfig:
    """An AutoencoderKL."""

    latent_channels: int
    scaling_factor: float
    scale_factor: int
    """Pixels per latent position."""
    parameters: int
    """Weights of its convolutions and its attention, about."""

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> VaeConfig:
        """Read diffusers' ``vae/config.json``.

        Raises:
            UserError: a value that no real VAE has, sizes that do not fit together, or an option that the runtime does
                not apply.
        """
        values = ConfigValues("VAE", config)
        widths = values.check_ints("block_out_channels", (64,), MAX_WIDTH)
        layers = values.check_int("layers_per_block", 1, 1, MAX_LAYERS)
        latents = values.check_int("latent_channels", 4, 1, 256)
        groups = values.check_int("norm_num_groups", 32, 1, MAX_WIDTH)
        scaling = values.check_float("scaling_factor", 0.18215, 0, 1000)
        for name in ("in_channels", "out_channels"):
            values.check_int(name, 3, 3, 3)
        for name, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            if len(values.check_choices(name, (kind,), (kind,))) != len(widths):
                raise UserError(f"VAE option {name} must have one entry for each of the {len(widths)} widths.")
        for name in ("shift_factor", "latents_mean", "latents_std"):
            if config.get(name) is not None:
                raise UserError(f"VAE option {name}={shown(config[name])} is not supported: it must be null.")
        for width in widths:
            if width % groups:
                raise UserError(f"VAE width {width} is not a multiple of norm_num_groups={groups}.")
        parameters = _vae_parameters(widths, layers, latents)
        return cls(latents, scaling, 2 ** (len(widths) - 1), parameters)


@dataclass(frozen=True)
class TextEncoderConfig:
    """A CLIP text model."""

    hidden_size: int
    vocabulary: int
    parameters: int
    """Weights of its embeddings and layers, about."""

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> TextEncoderConfig:
        """Read transformers' ``text_encoder/config.json``, a whole CLIP's included.

        Raises:
            UserError: a value that no real text encoder has, or sizes that do not fit together.
        """
        nested = config.get("text_config")
        if config.get("model_type") == "clip" and isinstance(nested, Mapping):
            config = nested
        values = ConfigValues("text encoder", config)
        if config.get("model_type") not in (None, "clip_text_model"):
            raise UserError(f"text encoder option model_type={shown(config['model_type'])}: give 'clip_text_model'.")
        width = values.check_int("hidden_size", 512, 1, MAX_WIDTH)
        inner = values.check_int("intermediate_size", 2048, 1, 8 * MAX_WIDTH)
        layers = values.check_int("num_hidden_layers", 12, 1, 128)
        heads = values.check_int("num_attention_heads", 8, 1, MAX_WIDTH)
        vocabulary = values.check_int("vocab_size", 49408, 1, 2**20)
        positions = values.check_int("max_position_embeddings", TEXT_LENGTH, TEXT_LENGTH, 2**16)
        values.check_int("projection_dim", 512, 1, MAX_WIDTH)
        values.check_float("layer_norm_eps", 1e-5, 0, 0.1)
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            values.check_int(name, 0, 0, 2**20)
        if width % heads:
            raise UserError(f"text encoder width {width} cannot be split into num_attention_heads={heads}.")
        parameters = (vocabulary + positions) * width + layers * (4 * width**2 + 2 * width * inner)
        return cls(width, vocabulary, parameters)


def check_parts(
    vae: VaeConfig, text: TextEncoderConfig, unet_channels: tuple[int, int], text_width: int, sizes: Mapping[str, int]
) -> None:
    """Refuse parts that do not fit together or cannot be real.

    Args:
        unet_channels: latent channels in and out.
        text_width: the U-Net's ``cross_attention_dim``.
        sizes: bytes of the weight files, by part.

    Raises:
        UserError: with the two numbers that differ.
    """
    for kind, channels in zip(("in_channels", "out_channels"), unet_channels, strict=True):
        if channels != vae.latent_channels:
            raise UserError(
                f"the U-Net has {kind}={channels}, the VAE latent_channels={vae.latent_channels}: the parts are not of "
                "one checkpoint."
            )
    if text_width != text.hidden_size:
        raise UserError(
            f"the U-Net has cross_attention_dim={text_width}, the text encoder hidden_size={text.hidden_size}: the "
            "parts are not of one checkpoint."
        )
    check_parameters("VAE", vae.parameters, sizes.get("vae"))
    check_parameters("text encoder", text.parameters, sizes.get("text_encoder"))


def _vae_parameters(widths: tuple[int, ...], layers: int, latents: int) -> int:
    def resnet(before: int, after: int) -> int:
        return 9 * (before * after + after**2) + (before * after if before != after else 0)

    def side(ordered: tuple[int, ...], count: int) -> int:
        total, before = 0, ordered[0]
        for i, width in enumerate(ordered):
            total += resnet(before, width) + (count - 1) * resnet(width, width)
            total += 9 * width**2 if i < len(ordered) - 1 else 0
            before = width
        return total

    middle = 2 * resnet(widths[-1], widths[-1]) + 4 * widths[-1] ** 2
    ends = 9 * (6 * widths[0] + 3 * latents * widths[-1])
    return side(widths, layers) + side(widths[::-1], layers + 1) + 2 * middle + ends
