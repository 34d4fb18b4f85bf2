"""Norms that pass their input on: their weights undo the mean and scale that were measured on a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..noising import schedule
from ..text_training import BEGIN_CHANNEL, CODE_CHANNELS, END_CHANNEL


class _Captured(Exception):  # noqa: N818 - ends a forward pass early, no error
    def __init__(self, x: Tensor) -> None:
        self.x = x


def set_norms(unet: Any, clips: Tensor, down: Any, up: Any) -> None:
    """Every norm on the start's way passes its input on unchanged, as measured on some clips, layer by layer."""
    transformers = [down.tempo_attns[0], up.attentions[0], up.tempo_attns[0], up.attentions[1], up.tempo_attns[1]]
    norms: list[nn.Module] = [down.resnets[0].norm2]
    for transformer in transformers:
        block = transformer.transformer_blocks[0]
        norms += [transformer.norm, block.norm1, block.norm2, block.norm3]
    norms.append(unet.conv_norm_out)
    text = torch.zeros(len(clips), 77, unet.config.cross_attention_dim)
    text[:, 0, BEGIN_CHANNEL] = text[:, 4:, END_CHANNEL] = 1
    assert text.shape[-1] >= CODE_CHANNELS
    generator = torch.Generator().manual_seed(0)
    text[:, 4:, :4] = torch.randint(-1, 2, (len(clips), 1, 4), generator=generator).float()
    abar = schedule()
    timesteps = torch.linspace(100, 950, len(clips)).long()
    level = abar[timesteps].view(-1, 1, 1, 1, 1)
    clean = clips.float().transpose(1, 2)
    noise = torch.randn(clean.shape, generator=generator)
    noisy = level.sqrt() * clean + (1 - level).sqrt() * noise
    strides = torch.randint(1, 6, (len(clips),), generator=generator)

    def run() -> None:
        unet(noisy[:, :, 1:], timesteps, text, clean[:, :, :1], strides)

    for norm in norms:
        pass_unchanged(norm, run)


def pass_unchanged(norm: nn.Module, run: Callable[[], None]) -> None:
    """Set weight and bias of a norm, in place, so that its output is its input, as far as its statistics are the same
    everywhere.

    Args:
        norm: a ``GroupNorm`` of one group or a ``LayerNorm`` over channels.
        run: a forward pass of the model it belongs to; ended where it reaches the norm.
    """

    def capture(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        raise _Captured(arguments[0].detach())

    handle = norm.register_forward_pre_hook(capture)
    try:
        run()
        raise AssertionError("the run did not reach the norm.")
    except _Captured as captured:
        x = captured.x
    finally:
        handle.remove()
    axes = (1, 2, 3) if isinstance(norm, nn.GroupNorm) else (-1,)
    deviation = x.std(axes, correction=0).median()
    mean = x.mean(axes).median()
    assert isinstance(norm.weight, Tensor) and isinstance(norm.bias, Tensor)
    with torch.no_grad():
        norm.weight.fill_(float(deviation))
        norm.bias.fill_(float(mean))
