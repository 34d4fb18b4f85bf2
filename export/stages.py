"""The five stages as torch modules with named inputs and outputs: what becomes one ONNX graph each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.export import Dim
from transformers import CLIPTextModel

from .source_model import SourceModel
from .unet import VideoUNet

TEXT_LENGTH = 77


class TextEncoderStage(nn.Module):
    def __init__(self, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: Tensor) -> Tensor:
        """int64 [1, 77] -> [1, 77, text width]: the last hidden state after the final LayerNorm, no attention mask."""
        out: Tensor = self.text_encoder(input_ids=input_ids).last_hidden_state
        return out


class ConditioningStage(nn.Module):
    def __init__(self, unet: VideoUNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, text_embeddings: Tensor) -> list[Tensor]:
        """[1, 77, text width] -> keys and values of every text attention, each [1, heads, 77, c / heads]."""
        return [tensor for pair in self.unet.text_key_values(text_embeddings).values() for tensor in pair]


class VaeEncoderStage(nn.Module):
    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """[1, 3, height, width] in [-1, 1] -> mean and log-variance [1, c, h, w], unscaled; sampling is the
        runtime's.
        """
        moments = self.vae.encoder(image)
        if self.vae.quant_conv is not None:
            moments = self.vae.quant_conv(moments)
        mean, logvar = moments.chunk(2, dim=1)
        return mean, logvar


class VaeDecoderStage(nn.Module):
    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        """Scaled latents [1, c, h, w], as the loop has them -> image [1, 3, height, width], about [-1, 1]."""
        unscaled = latents / self.vae.config.scaling_factor
        if self.vae.post_quant_conv is not None:
            unscaled = self.vae.post_quant_conv(unscaled)
        image: Tensor = self.vae.decoder(unscaled)
        return image


class UNetStage(nn.Module):
    def __init__(self, unet: VideoUNet) -> None:
        super().__init__()
        self.unet = unet
        self.paths = list(unet.text_transformers())

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        first_frame_latents: Tensor,
        key_values: list[Tensor],
        frame_stride: Tensor | None = None,
    ) -> Tensor:
        """sample [rows, c, f-1, h, w], timestep and frame_stride int64 [1], first frame [rows, c, 1, h, w]."""
        text = {path: (key_values[2 * i], key_values[2 * i + 1]) for i, path in enumerate(self.paths)}
        return self.unet.denoise(sample, timestep, text, first_frame_latents, frame_stride)


@dataclass
class StageExport:
    """One stage, ready to export."""

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    """Random example inputs, by name, in the order of the graph's inputs."""
    outputs: list[str]
    axes: dict[str, dict[int, str]] = field(default_factory=dict)
    """Input or output -> axis -> name of its dynamic size; empty for a static export."""
    arrange: Callable[[list[Any]], tuple[Any, ...]] = tuple
    """Arranges one value per input as the arguments of the module."""


def dynamic_sizes(latent_multiple: int, vae_scale_factor: int) -> dict[str, Any]:
    """torch.export's dynamic sizes. Latent sizes are multiples of `latent_multiple`, so that no level has an odd
    size.
    """
    sizes: dict[str, Any] = {"rows": Dim("rows", min=1, max=64)}
    for axis in ("height", "width"):
        steps = Dim(f"{axis}_steps", min=1, max=1024)
        sizes[f"latent_{axis}"] = latent_multiple * steps
        sizes[axis] = latent_multiple * vae_scale_factor * steps
    return sizes


def text_tensor_names(unet: VideoUNet) -> list[str]:
    """Names shared by the conditioning's outputs and the U-Net's inputs: ``<transformer path>.key`` and ``.value``."""
    return [f"{path}.{part}" for path in unet.text_transformers() for part in ("key", "value")]


def stages(
    model: SourceModel, height: int, width: int, rows: int, dynamic: bool, seed: int = 0
) -> Iterator[StageExport]:
    """Every stage with random example inputs at the given pixel size; the U-Net, by far the largest, last."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    config = model.unet.config
    channels, latent_size = config.in_channels, (height // model.vae_scale_factor, width // model.vae_scale_factor)
    names = text_tensor_names(model.unet)
    pixel_axes = {2: "height", 3: "width"}
    latent_axes = {2: "latent_height", 3: "latent_width"}

    def axes(**by_name: dict[int, str]) -> dict[str, dict[int, str]]:
        return by_name if dynamic else {}

    ids = torch.randint(0, model.text_encoder.config.vocab_size, (1, TEXT_LENGTH), generator=generator)
    yield StageExport("text_encoder", TextEncoderStage(model.text_encoder), {"input_ids": ids}, ["text_embeddings"])

    text = {"text_embeddings": random(1, TEXT_LENGTH, config.cross_attention_dim)}
    yield StageExport("conditioning", ConditioningStage(model.unet), text, names)

    yield StageExport(
        "vae_encoder",
        VaeEncoderStage(model.vae),
        {"image": random(1, 3, height, width).clamp(-1, 1)},
        ["mean", "logvar"],
        axes(image=pixel_axes, mean=latent_axes, logvar=latent_axes),
    )
    yield StageExport(
        "vae_decoder",
        VaeDecoderStage(model.vae),
        {"latents": random(1, channels, *latent_size)},
        ["image"],
        axes(latents=latent_axes, image=pixel_axes),
    )
    # With a dynamic batch the example has two rows or more: torch.export takes a size of 1 for a constant.
    rows = max(rows, 2) if dynamic else rows
    clip_axes = {0: "rows", 3: "latent_height", 4: "latent_width"}
    text_axes = {name: {0: "rows"} for name in names}
    unet_axes = axes(sample=clip_axes, first_frame_latents=clip_axes, noise_pred=clip_axes, **text_axes)
    yield unet_export(model.take_unet(), latent_size, rows, random, unet_axes)


def unet_export(
    unet: VideoUNet,
    latent_size: tuple[int, int],
    rows: int,
    random: Callable[..., Tensor],
    axes: dict[str, dict[int, str]],
) -> StageExport:
    """The U-Net stage; `random` draws normal numbers of a shape, `axes` names the dynamic sizes."""
    config, names = unet.config, text_tensor_names(unet)
    with torch.no_grad():
        key_values = ConditioningStage(unet)(random(rows, TEXT_LENGTH, config.cross_attention_dim))
    inputs = {
        "sample": random(rows, config.in_channels, config.n_frames - 1, *latent_size),
        "timestep": torch.tensor([501]),
        "first_frame_latents": random(rows, config.in_channels, 1, *latent_size),
        **dict(zip(names, key_values, strict=True)),
    }
    if config.use_frame_stride_condition:
        inputs["frame_stride"] = torch.tensor([3])
    # The module takes the text tensors as one list, between the first frame and the stride.
    end = 3 + len(names)
    return StageExport(
        "unet",
        UNetStage(unet),
        inputs,
        ["noise_pred"],
        axes,
        lambda flat: (*flat[:3], flat[3:end], *flat[end:]),
    )
