"""How fast each weight of the U-Net learns, relative to the learning rate.

What the start (:mod:`.unet_start`) has set steers where each position looks: there a step that is small for a random
network moves the whole picture. Such weights learn slowly; so do the rows of all other layers that write into the
steering channels of the trunk. The branches that the start left silent learn at the full rate what they add to the
noise.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .unet_start.channels import LATENT, mirror

_SLOW, _MIDDLE = 0.01, 0.1
# Set by the start from end to end.
_STEERING = (
    "conv_in.",
    "time_embedding.",
    "frame_stride_embedding.",
    "down_blocks.0.resnets.0.",
    "down_blocks.0.tempo_attns.0.",
    "down_blocks.0.downsamplers.",
    "down_blocks.1.resnets.",
    "mid_block.resnets.",
    "up_blocks.0.resnets.",
    "up_blocks.0.upsamplers.",
    "up_blocks.1.attentions.0.",
    "up_blocks.1.tempo_attns.0.",
    "up_blocks.1.attentions.1.",
)
# The composition of the noise from what was steered.
_COMPOSING = ("up_blocks.1.tempo_attns.1.", "conv_norm_out.", "conv_out.")
# Layers that add to the finest level's trunk.
_WRITING = (
    ".conv2.weight",
    ".conv2.bias",
    ".proj_out.weight",
    ".proj_out.bias",
    ".conv_shortcut.weight",
    ".conv_shortcut.bias",
)


def relative_rates(unet: nn.Module) -> dict[str, Tensor]:
    """Parameter name -> its relative rate: a number, or one per row (shaped to broadcast over the parameter)."""
    rates = {}
    for name, parameter in unet.named_parameters():
        if name.startswith(_STEERING):
            rates[name] = torch.tensor(_SLOW)
        elif name.startswith(_COMPOSING):
            rates[name] = torch.tensor(_MIDDLE)
        elif name.startswith(("down_blocks.0.", "up_blocks.1.")) and name.endswith(_WRITING):
            rows = torch.full((parameter.shape[0],), _SLOW)
            for channel in range(LATENT.start, LATENT.stop):
                rows[[channel, mirror(channel)]] = 1.0
            rates[name] = rows.view(-1, *[1] * (parameter.ndim - 1))
        else:
            rates[name] = torch.tensor(1.0)
    return rates


class RelativeSteps:
    """Scales what an optimiser's step did to each parameter by its relative rate."""

    def __init__(self, unet: nn.Module) -> None:
        rates = relative_rates(unet)
        self._slowed = [
            (parameter, rates[name].to(parameter.device))
            for name, parameter in unet.named_parameters()
            if parameter.requires_grad and bool((rates[name] != 1).any())
        ]

    @torch.no_grad()
    def step(self, optimiser: torch.optim.Optimizer) -> None:
        """One step of the optimiser, scaled."""
        before = [parameter.clone() for parameter, _ in self._slowed]
        optimiser.step()
        for (parameter, rate), old in zip(self._slowed, before, strict=True):
            parameter.copy_(old + rate * (parameter - old))
