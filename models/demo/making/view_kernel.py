"""How the first frame is seen at a place between its positions: a Gaussian mean of the positions around it.

The U-Net's start attends to the first frame in this way (:mod:`.unet_start.look`); the decoder is trained on latents
that were moved so, because latents of a picture that moves by less than a position are not the moved picture's.
"""

from __future__ import annotations

import torch
from torch import Tensor

KERNEL_SHARPNESS = 2.5
"""Of the Gaussian, per squared distance in latent positions: 1 / (2 * 0.45**2)."""


def moved_latents(latents: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """Latents as seen through views that are moved against them; beyond the edge the edge goes on.

    Args:
        latents: float [n, c, h, w].
        right, down: float [n], in latent positions; the picture runs against them.

    Returns:
        float [n, c, h, w].
    """
    across, along = (_weights(latents.shape[axis], shift) for axis, shift in ((3, right), (2, down)))
    return torch.einsum("nyi,nxj,ncij->ncyx", along.to(latents), across.to(latents), latents)


def _weights(size: int, shift: Tensor) -> Tensor:
    """[n, size, size]: weight of position j for the place that position i shows."""
    axis = torch.arange(size, dtype=torch.float32)
    distance = axis[:, None] + shift[:, None, None].cpu() - axis[None, :]
    return torch.softmax(-KERNEL_SHARPNESS * distance**2, dim=-1)
