"""The trunk: what enters at the first convolution, what each block keeps of its inputs, and what leaves."""

from __future__ import annotations

from typing import Any

from .channels import CONSTANTS, LATENT, LATENT_SCALE, MOTION, PLACE, STRIDE, TRUNK_CONSTANT, mirror, silence, write


def set_trunk(unet: Any, up: Any, width: int) -> None:
    """The latents, their mirrors and two constants enter; the finest up block keeps the skip's channels and takes the
    place from below; the last convolution reads the latents less their mirrors, through their activation.
    """
    for layer in (unet.conv_in, unet.conv_out):
        silence(layer)
    for c in range(LATENT.start, LATENT.stop):
        write(unet.conv_in.weight, c, (c, 1, 1), LATENT_SCALE)
        unet.conv_out.weight[c, c, 1, 1] = 1 / LATENT_SCALE
        unet.conv_out.weight[c, mirror(c), 1, 1] = -1 / LATENT_SCALE
    for channel, sign in zip(CONSTANTS, (1, -1), strict=True):
        unet.conv_in.bias[channel] = sign * TRUNK_CONSTANT
    signals = [*range(LATENT.start, LATENT.stop), *range(STRIDE, MOTION.stop)]
    kept = [*signals, *map(mirror, signals), *CONSTANTS]
    for resnet, source in zip(up.resnets, ({c: width + c for c in kept}, {c: c for c in range(width)}), strict=True):
        silence(resnet.conv_shortcut)
        for channel, taken in source.items():
            resnet.conv_shortcut.weight[channel, taken] = 1
    for k, channel in enumerate(range(PLACE.start, PLACE.stop)):
        write(up.resnets[0].conv_shortcut.weight, channel, k, 1.0)
