"""Text attention made cheaper, as an option of the export whose loss is measured there.

Taghipour et al. (2024, arXiv:2407.19205) find that image-to-video models hardly use their temporal cross-attention and
that the spatial one comes to a linear map of the condition. So: none in the temporal layers, and in the spatial ones
the map of the mean token, ``to_out(to_v(mean of the text))``, one vector per prompt that is added to every position.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from .attention import KeyValue, TextAttention
from .model import VideoUNet
from .transformers import SpatialTransformer, TemporalTransformer, TransformerBlock


class MeanTokenText(nn.Module):
    """What stands for a spatial text attention: what it would return if it saw all tokens alike."""

    parts = ("mean",)

    def __init__(self, attention: TextAttention) -> None:
        super().__init__()
        self.to_v = attention.to_v
        self.to_out = attention.to_out

    def key_values(self, text: Tensor) -> KeyValue:
        """text [b, length, text channels] -> one vector [b, c] per prompt."""
        vector: Tensor = self.to_out[0](self.to_v(text.mean(dim=1)))
        return (vector,)

    def forward(self, x: Tensor, key_value: KeyValue) -> Tensor:
        """[b, f, n, c] -> [b, 1, 1, c], to be added."""
        (vector,) = key_value
        return vector[:, None, None]


def simplify_text_attention(unet: VideoUNet) -> VideoUNet:
    """Replace every text attention in place, for inference; returns the U-Net."""
    for module in list(unet.modules()):
        if isinstance(module, SpatialTransformer | TemporalTransformer):
            block = cast(TransformerBlock, module.transformer_blocks[0])
            if isinstance(module, TemporalTransformer):
                block.attn2 = None
            elif isinstance(block.attn2, TextAttention):
                block.attn2 = MeanTokenText(block.attn2)
    return unet


@torch.no_grad()
def simplify_and_measure(unet: VideoUNet, latent_height: int, latent_width: int, seed: int = 0) -> float:
    """Simplify in place; returns the relative L2 of the predicted noise against full attention, on random inputs."""
    config, generator = unet.config, torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    channels, frames, size = config.in_channels, config.n_frames, (latent_height, latent_width)
    sample, first_frame = random(1, channels, frames - 1, *size), random(1, channels, 1, *size)
    text = random(1, 77, config.cross_attention_dim)
    stride = 3 if config.use_frame_stride_condition else None
    full = unet(sample, 501, text, first_frame, stride)
    simplified = simplify_text_attention(unet)(sample, 501, text, first_frame, stride)
    return float((simplified - full).norm() / full.norm())
