"""The coarse level learns, before all else, where in the frame each position is.

Convolutions see the zeros around a frame, and nothing else tells positions apart. With constant channels as the only
input this is a task of one small picture: some steps, then the last convolution by least squares.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .....export.unet import VideoUNet
from ..denormals import flushed_denormals
from .channels import CONSTANTS

_STEPS = 150
_RIDGE = 1e-7
_LEARNING_RATE = 4e-3


def place_maps(size: int) -> Tensor:
    """Right and down, -1 to 1 from edge to edge, at the positions' centres: float [2, size, size]."""
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    right, down = axis[None, :].expand(size, size), axis[:, None].expand(size, size)
    return torch.stack([right, down])


def learn_positions(unet: VideoUNet, size: int, constant: float) -> float:
    """Train downsampler, coarse resnets and upsampler, in place, to give :func:`place_maps` in the first channels of
    what the finest up block takes from below; returns the largest error.

    Args:
        unet: two levels of one layer; temporal layers and attentions of the coarse level silent.
        size: positions of the finest level's side.
        constant: value of the trunk's constant channels, the only ones that go down.
    """
    modules_of: Any = unet
    down, coarse = modules_of.down_blocks
    middle, up = modules_of.mid_block, modules_of.up_blocks[0]
    downsampler = down.downsamplers[0].conv
    resnets = [*coarse.resnets, *middle.resnets, *up.resnets]
    with torch.no_grad():
        kept = downsampler.weight[:, list(CONSTANTS)].clone()
        downsampler.weight.zero_()
        downsampler.weight[:, list(CONSTANTS)] = kept * (2.5 / constant)
        for resnet in resnets:
            nn.init.zeros_(resnet.time_emb_proj.weight)
            nn.init.kaiming_uniform_(resnet.conv2.weight, a=5**0.5)
            resnet.conv2.weight.mul_(0.5)
    trunk = torch.zeros(1, downsampler.in_channels, size, size)
    trunk[:, CONSTANTS[0]], trunk[:, CONSTANTS[1]] = constant, -constant
    emb = torch.zeros(1, unet.config.time_embed_dim)
    wanted = place_maps(size)
    count = len(wanted)
    modules = [downsampler, *resnets, *up.upsamplers]
    trained = [p for module in modules for p in module.parameters() if p.requires_grad]

    def features() -> Tensor:
        skips = [downsampler(trunk)]
        x = coarse.resnets[0](skips[0], emb)
        skips.append(x)
        for resnet in middle.resnets:
            x = resnet(x, emb)
        for resnet in up.resnets:
            x = resnet(torch.cat([x, skips.pop()], dim=1), emb)
        return x

    def error(x: Tensor) -> Tensor:
        out: Tensor = up.upsamplers[0](x, (size, size))
        return out[0, :count] - wanted

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a picture: threads would only wait for each other
    # The optimiser's averages of vanishing gradients would cost 50 times the rest.
    with torch.enable_grad(), flushed_denormals():
        optimiser = torch.optim.Adam(trained, lr=_LEARNING_RATE, betas=(0.9, 0.99), foreach=True)
        for step in range(_STEPS):
            for group in optimiser.param_groups:
                group["lr"] = _LEARNING_RATE * min(1.0, step / 20) * (1 - step / _STEPS)
            loss = error(features()).pow(2).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    torch.set_num_threads(threads)
    with torch.no_grad():
        x = features()
        last = up.upsamplers[0].conv
        enlarged = torch.nn.functional.interpolate(x, size=(size, size), mode="nearest")
        design = torch.nn.functional.unfold(enlarged, 3, padding=1)[0].T.double()
        design = torch.cat([design, torch.ones(len(design), 1)], dim=1)
        # A correction of what was learnt, as small as it can be.
        gram = design @ design.T + _RIDGE * len(design) * torch.eye(len(design), dtype=torch.double)
        change = design.T @ torch.linalg.solve(gram, -error(x).flatten(1).T.double())
        last.weight[:count] += change[:-1].T.reshape(last.weight[:count].shape).float()
        last.bias[:count] += change[-1].float()
        return float(error(x).abs().max())
