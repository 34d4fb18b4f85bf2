"""What enters the U-Net and leaves it, the ramp over the frame, and channels that follow timestep and stride."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....kernels.ddim import SchedulerConfig, alphas_cumprod
from .layer import LATENT_SCALE, REACH, TRUNK, TRUNK_CONSTANT
from .moves import STRIDES
from .norms import Run, pass_on, silence
from .vae import CHANNELS, GRID


def schedule() -> Tensor:
    """The published schedule's cumulative alphas, float32 [1000]."""
    return torch.from_numpy(alphas_cumprod(SchedulerConfig()).copy())


def set_trunk(unet: Any) -> None:
    """What enters, what the blocks pass on, the ramp over the frame, and what leaves."""
    for layer in (unet.conv_in, unet.conv_out):
        silence(layer)
    for c in range(CHANNELS):
        for name, sign in (("latent", 1.0), ("mirror", -1.0)):
            unet.conv_in.weight[TRUNK[name, c], c, 1, 1] = sign * LATENT_SCALE
            unet.conv_out.weight[c, TRUNK[name, c], 1, 1] = sign / LATENT_SCALE
    unet.conv_in.bias[TRUNK.all("constant")] = torch.tensor([TRUNK_CONSTANT, -TRUNK_CONSTANT])
    # Coarse levels hold 1, and in channels 1 and 2 the ramps.
    for level, block in enumerate(unet.down_blocks):
        for resnet in block.resnets:
            if resnet.conv_shortcut is not None:
                silence(resnet.conv_shortcut)
                nn.init.dirac_(resnet.conv_shortcut.weight)
        for downsampler in block.downsamplers:
            silence(downsampler.conv)
            constant = TRUNK["constant"] if level == 0 else 0
            downsampler.conv.weight[0, constant, 1, 1] = 1 / TRUNK_CONSTANT if level == 0 else 1
    # Two positions a side, the first of which sees the padding: -1/2 and 1/2.
    last = unet.down_blocks[2].downsamplers[0].conv
    last.weight[1, 0, 1, 0] = last.weight[2, 0, 0, 1] = 1
    last.bias[1:3] = -0.5
    for level, block in zip((3, 2, 1, 0), unet.up_blocks, strict=True):
        for i, resnet in enumerate(block.resnets):
            silence(resnet.conv_shortcut)
            if level == 0 and i == 0:
                nn.init.dirac_(resnet.conv_shortcut.weight[:, 32:])
                for axis in (0, 1):
                    resnet.conv_shortcut.weight[TRUNK["place", axis], 1 + axis] = 1 / REACH
            else:
                nn.init.dirac_(resnet.conv_shortcut.weight)
        for upsampler in block.upsamplers:
            silence(upsampler.conv)
            weight, edge = upsampler.conv.weight, (GRID >> (level + 1)) / 2 + 0.25
            weight[0, 0, 1, 1] = 1
            # Twice the linear interpolation; the padding takes the place of the ramp's next step.
            for taps, channel in ((weight[1, :, 1, :], 1), (weight[2, :, :, 1], 2)):
                taps[channel] = torch.tensor([0.5, 1.0, 0.5])
                taps[0] = torch.tensor([edge, 0.0, -edge])


def set_levels(unet: Any, resnet: Any, run: Run) -> None:
    """Channels STRIDE (stride / 5), GAIN (less 1) and PULL (gain x sqrt(abar)), the last two over their largest.

    They are fitted to hidden units of the two embeddings that bend at chosen timesteps and strides, stand in the
    embedding as pairs of opposite signs, and pass the resnet as such. Bends lie closer and closer towards timestep 0,
    where GAIN is steep; at small strides few units are open, so that half precision keeps the speed of slow moves.
    """
    abar = schedule()
    # By what an error does to the clean latents that it stands for; the noisiest timesteps magnify it most.
    magnified = (1 / abar).clamp(max=600).sqrt()
    levels = gain_and_pull() - torch.tensor([1.0, 0.0])
    wanted = levels / levels.amax(0)
    importance = torch.stack([magnified * (1 - abar) * levels[:, 0].max(), magnified], 1) + 0.3
    bends = 2 * 501 ** (torch.arange(48) / 47) - 2
    _fit_embedding(unet.time_embedding, torch.arange(len(abar)), bends, 1000.0, wanted, importance, [0, 1])
    strides = torch.tensor(STRIDES)
    wanted = strides[:, None] / max(STRIDES)
    _fit_embedding(unet.frame_stride_embedding, strides, torch.linspace(8, 0, 9), 8.0, wanted, 1 / wanted, [2])
    for layer in (resnet.time_emb_proj, resnet.conv1, resnet.conv2):
        silence(layer)
    for k, name in enumerate(("gain", "pull", "stride")):
        for row, sign in ((2 * k, 1.0), (2 * k + 1, -1.0)):
            resnet.time_emb_proj.weight[row, 2 * k], resnet.time_emb_proj.weight[row, 2 * k + 1] = sign, -sign
            resnet.conv2.weight[TRUNK[name], row, 1, 1] = sign
    resnet.conv1.bias[6:8] = torch.tensor([TRUNK_CONSTANT, -TRUNK_CONSTANT])
    pass_on(resnet.norm2, run)


def gain_and_pull() -> Tensor:
    """By timestep, float [1000, 2]: 1 / sigma, noise over the difference of noisy latents and sqrt(abar) times the
    clean latents, and that times sqrt(abar).
    """
    abar = schedule()
    gain = (1 - abar).rsqrt()
    return torch.stack([gain, gain * abar.sqrt()], 1)


def _fit_embedding(
    embedding: Any, values: Tensor, bends: Tensor, end: float, wanted: Tensor, importance: Tensor, pairs: list[int]
) -> None:
    """Make channels 2 pair and 2 pair + 1 of an embedding half the wanted functions and their negatives, the rest 0.

    Args:
        embedding: of timesteps or strides.
        values: [n], what is embedded.
        bends: values at which hidden units silu(steep (bend - value)) bend, in a wave that is nearly straight up to
            `end`; in falling order the units open the other way, silu(steep (value - bend)).
        wanted, importance: [n, pairs].
    """
    layer, frequencies = embedding.linear_1, torch.tensor(embedding.frequencies)
    silence(embedding.linear_2)
    wave = int((frequencies - 1 / end).abs().argmin())
    # [cos, sin]: the sine of the slow wave.
    column, frequency = len(frequencies) + wave, float(frequencies[wave])
    gaps = torch.diff(bends, append=2 * bends[-1:] - bends[-2:-1])
    for row, (bend, gap) in enumerate(zip(bends.tolist(), gaps.tolist(), strict=True)):
        steep = 2 / (frequency * gap)
        layer.weight[row] = 0
        layer.weight[row, column] = -steep
        layer.bias[row] = steep * math.sin(frequency * bend)
    features = F.silu(layer(embedding.sinusoid(values)))[:, : len(bends)]
    design = torch.cat([features, torch.ones(len(features), 1)], dim=1).double()
    for k, pair in enumerate(pairs):
        weighted = design * importance[:, k : k + 1].double()
        # The rounding of half precision, as a ridge.
        ridge = torch.diag((3e-4**2) * weighted.pow(2).sum(0))
        fit = torch.linalg.solve(weighted.T @ weighted + ridge, weighted.T @ (wanted[:, k] * importance[:, k]).double())
        for row, sign in ((2 * pair, 1.0), (2 * pair + 1, -1.0)):
            embedding.linear_2.weight[row, : len(bends)] = sign * fit[:-1].float()
            embedding.linear_2.bias[row] = sign * fit[-1].float()
