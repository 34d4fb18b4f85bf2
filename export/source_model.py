"""A whole model to export: U-Net, VAE, text encoder, tokenizer, and where they came from."""

from __future__ import annotations

from dataclasses import dataclass, field

from diffusers import AutoencoderKL
from transformers import CLIPTextModel, PreTrainedTokenizerBase

from ..kernels.ddim import SchedulerConfig
from ..runtime.bundle.manifest import RecommendedSettings
from .unet import VideoUNet


@dataclass
class SourceModel:
    """Torch modules in float32, evaluation mode, the U-Net prepared for inference."""

    unet: VideoUNet
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: PreTrainedTokenizerBase
    source: str
    """Folder, hub id or what the weights are."""
    revision: str
    licence: str
    trained: bool
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    """The published schedule is part of ConsistI2V's inference settings, not of the checkpoint folder."""
    recommended: RecommendedSettings = field(default_factory=RecommendedSettings)

    def take_unet(self) -> VideoUNet:
        """Hand the U-Net over and keep no reference: at full size it must be gone before its graph is loaded."""
        unet = self.unet
        del self.unet
        return unet

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent position."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))
