"""The five stages as torch modules with named inputs and outputs: what becomes one ONNX graph each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.export import Dim
from transformers import CLIPTextModel

from .part_configs import TEXT_LENGTH
from .source_model import SourceModel
from .unet import VideoUNet
from .unet_stages import StageExport, text_tensor_names, unet_axes, unet_export


class TextEncoderStage(nn.Module):
    """Token numbers to text embeddings: CLIP without its projection."""

    def __init__(self, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: Tensor) -> Tensor:
        """int64 [1, 77] -> [1, 77, text width]: the last hidden state after the final LayerNorm, no attention mask."""
        out: Tensor = self.text_encoder(input_ids=input_ids).last_hidden_state
        return out


class ConditioningStage(nn.Module):
    """Text embeddings to the keys and values of the U-Net's text attentions."""

    def __init__(self, unet: VideoUNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, text_embeddings: Tensor) -> list[Tensor]:
        """[1, 77, text width] -> keys and values of every text attention, each [1, heads, 77, c / heads]."""
        return [tensor for pair in self.unet.text_key_values(text_embeddings).values() for tensor in pair]


class VaeEncoderStage(nn.Module):
    """A picture to the mean and log-variance of its latents."""

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
    """Latents to a picture."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        """Scaled latents [frames, c, h, w], as the loop has them -> images [frames, 3, height, width] in about
        [-1, 1].
        """
        unscaled = latents / self.vae.config.scaling_factor
        if self.vae.post_quant_conv is not None:
            unscaled = self.vae.post_quant_conv(unscaled)
        image: Tensor = self.vae.decoder(unscaled)
        return image


def dynamic_sizes(latent_multiple: int, vae_scale_factor: int) -> dict[str, Any]:
    """torch.export's dynamic sizes. Latent sizes are multiples of `latent_multiple`, so that no level has an odd
    size.
    """
    sizes: dict[str, Any] = {"rows": Dim("rows", min=1, max=64), "frames": Dim("frames", min=1, max=64)}
    for axis in ("height", "width"):
        steps = Dim(f"{axis}_steps", min=1, max=1024)
        sizes[f"latent_{axis}"] = latent_multiple * steps
        sizes[axis] = latent_multiple * vae_scale_factor * steps
        for divisor in (2**level for level in range(1, latent_multiple.bit_length())):
            sizes[f"latent_{axis}/{divisor}"] = latent_multiple // divisor * steps
    return sizes


def stages(
    model: SourceModel,
    height: int,
    width: int,
    rows: int | None,
    dynamic: bool,
    seed: int = 0,
    cache_branch: int | None = None,
) -> Iterator[StageExport]:
    """Every stage with random example inputs at the given pixel size; the U-Net, by far the largest, last.

    Args:
        rows: the U-Net's batch; None leaves it open. The VAE decoder's frames are open in any case.
        dynamic: leave batch and size open.
        cache_branch: also the shallow step of feature caching, cut at this skip.
    """
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
        # Two of them, as of open rows below.
        {"latents": random(2, channels, *latent_size)},
        ["image"],
        {
            "latents": {0: "frames", **(latent_axes if dynamic else {})},
            "image": {0: "frames", **(pixel_axes if dynamic else {})},
        },
    )
    unet = model.take_unet()
    free = dynamic or rows is None
    # With an open batch the example has two rows or more: torch.export takes a size of 1 for a constant.
    clip = (unet, latent_size, max(rows or 2, 2) if free else rows or 1, random)
    open_sizes = unet_axes(unet, dynamic, cache_branch) if free else {}
    if cache_branch is not None:
        yield unet_export(*clip, open_sizes, cache_branch, shallow=True)
    yield unet_export(*clip, open_sizes, cache_branch)
