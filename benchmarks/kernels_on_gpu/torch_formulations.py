"""What each kernel does, written in torch as one would without it; the arguments are the kernel's own, as tensors."""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Tensors: TypeAlias = dict[str, Tensor]


def guided_step(t: Tensors, rescale: float) -> None:
    """Text guidance, optional rescale, DDIM's three numbers, rows of the next step."""
    first, prompt = t["predictions"].float()
    guided = first + 7.5 * (prompt - first)
    if rescale > 0:
        spread, own = (x.flatten(1).std(dim=1)[:, None] for x in (prompt, guided))
        guided = guided * (rescale * spread / own + (1 - rescale))
    sample = 0.99 * t["state"][0] - 0.02 * guided
    t["state"][0].copy_(sample)
    t["rows"].copy_(sample.expand_as(t["rows"]))


def frames_to_uint8(t: Tensors) -> Tensor:
    pixels = (t["decoded"].float() / 2 + 0.5).clamp(0, 1) * 255
    return pixels.to(torch.uint8).transpose(1, 2).contiguous()


def frame_init_difference(t: Tensors) -> Tensor:
    static, noise = t["static_latents"], t["noise"]
    return (0.6 * static + 0.8 * noise) - noise


def low_pass_mix(t: Tensors) -> None:
    t["spectrum"].mul_(t["mask"])


def initial_latents(t: Tensors) -> tuple[Tensor, Tensor]:
    latents = t["noise"] + t["correction"] * (1 / 16384)
    return latents[:, :1].contiguous(), latents[:, 1:].contiguous()


def mix_noise(t: Tensors) -> Tensor:
    return math.sqrt(0.5) * t["base"] + math.sqrt(0.5) * t["independent"]


def normal_noise(t: Tensors) -> None:
    t["normals"].normal_()


def temporal_window_attention(t: Tensors, heads: int, height: int, width: int) -> Tensor:
    """The two-step form: rotate, gather and concatenate, transpose, general attention, transpose back."""
    from ...export.unet.attention import window_indices

    query, key, value = (t[name] for name in ("query", "key", "value"))
    clips, frames, positions, channels = query.shape
    cos, sin = t["rotation"].to(query.dtype)[:, None].unbind(-1)

    def rotate(x: Tensor) -> Tensor:
        turning, still = x.chunk(2, dim=-1)
        even, odd = turning.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.cat([torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2), still], -1)

    def per_position(x: Tensor) -> Tensor:
        return x.unflatten(-1, (heads, -1)).permute(0, 2, 3, 1, 4).flatten(0, 1)

    neighbours = window_indices(height, width, query.device)
    query, key = rotate(query), rotate(key)
    key, value = (
        torch.cat([x, x[:, 0].index_select(1, neighbours).reshape(clips, 8, positions, channels)], dim=1)
        for x in (key, value)
    )
    out = F.scaled_dot_product_attention(per_position(query), per_position(key), per_position(value))
    return out.transpose(1, 2).reshape(clips, positions, frames, channels).transpose(1, 2).contiguous()
