"""The look at the first frame: each position's source as cosines and sines, compared with the first frame's places.

Logits are sums of two cosines of the distance along each axis. The fast one (period 8 positions) makes the kernel as
sharp as :data:`..view_kernel.KERNEL_SHARPNESS`, the slow one (32) tells its periods apart. A squared distance would do
too, but only as a difference of numbers 40 times larger, which half precision does not hold.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..view_kernel import KERNEL_SHARPNESS
from .channels import (
    CODE,
    GATE_START,
    LATENT,
    LATENT_SCALE,
    LEVEL,
    OTHER,
    SOURCE,
    TIME,
    TOKEN_CONSTANT,
    TOKEN_ZERO,
    WARPED,
    lay_out_tokens,
    paired,
    read,
    set_product,
    write,
)

_PERIODS = (8.0, 32.0)
"""Positions."""
_SLOW_LOGIT = 8.0
_OTHER_FRAMES_PENALTY = 15.0
_KNOTS, _STEEPNESS, _REACH = 14, 1.5, 1.7
"""Of the piecewise functions: knots per side, bends of gelu per distance of knots, half widths that they cover."""
_ROUNDING = 3e-4
"""Relative error of a hidden unit that the fit reckons with: half precision's."""
_TOKENS, _TIME_TOKEN, _OTHER_TOKEN = 10, 6, 18
_STEP, _STEP_STEEPNESS = (0.5, 0.9), 8.0
"""Frame numbers between which OTHER rises, and bends of gelu per frame."""


def fast_logit(sharpness: float = KERNEL_SHARPNESS) -> float:
    """Weight of the fast cosine for a sharpness: -sharpness d^2 near 0, less what the slow cosine gives."""
    fast, slow = (2 * math.pi / period for period in _PERIODS)
    return (sharpness - _SLOW_LOGIT * slow**2 / 2) / (fast**2 / 2)


def write_code(transformer: Any, size: int) -> None:
    """CODE: per axis cosine and sine of SOURCE, fast and slow; beyond the frame's edge as at the edge. OTHER: a step of
    TIME between the first two frames.
    """
    lay_out_tokens(transformer, paired({SOURCE.start: 1.0, SOURCE.start + 1: 1.0}) | {_TIME_TOKEN: (TIME, 1.0)})
    block = transformer.transformer_blocks[0]
    proj, last = block.ff.net[0].proj, block.ff.net[2]
    inner = proj.weight.shape[0] // 2
    knots, units = _basis()
    weights, offsets = _fit(size, knots, units)
    per_axis = len(knots)
    for axis in (0, 1):
        for k, (knot, steep) in enumerate(zip(knots, units, strict=True)):
            row = axis * per_axis + k
            for place in (row, inner + row):
                proj.weight[place] = 0
                proj.bias[place] = 0
            proj.bias[row] = 1
            read(proj.weight[inner + row], 2 + axis, TOKEN_ZERO, float(steep))
            proj.bias[inner + row] = float(-steep * knot)
            last.weight[_TOKENS + 4 * axis : _TOKENS + 4 * axis + 4, row] = weights[:, k]
        last.bias[_TOKENS + 4 * axis : _TOKENS + 4 * axis + 4] = offsets
    opened = 1 / (1 - GATE_START)
    for k in range(CODE.stop - CODE.start):
        write(transformer.proj_out.weight, CODE.start + k, _TOKENS + k, opened)
    # Two bends, a rise apart: from one to the other the difference of the units rises from 0 to 1.
    begin, end = _STEP
    for row, bend, sign in ((2 * per_axis, begin, 1.0), (2 * per_axis + 1, end, -1.0)):
        for place in (row, inner + row):
            proj.weight[place] = 0
        proj.bias[row] = 1
        read(proj.weight[inner + row], _TIME_TOKEN, TOKEN_ZERO, _STEP_STEEPNESS * (transformer.n_frames - 1))
        proj.bias[inner + row] = -_STEP_STEEPNESS * bend
        last.weight[_OTHER_TOKEN, row] = sign / (_STEP_STEEPNESS * (end - begin))
    write(transformer.proj_out.weight, OTHER, _OTHER_TOKEN, opened)


def _basis() -> tuple[Tensor, Tensor]:
    """Knots and steepnesses of the units gelu(steepness (u - knot)), each bending away from the middle: near the middle
    few units are large, so that their rounding does not add up.
    """
    side = torch.linspace(0, 1, _KNOTS)
    knots = torch.cat([side, -side])
    steepness = _STEEPNESS / float(side[1])
    return knots, torch.cat([torch.full_like(side, steepness), torch.full_like(side, -steepness)])


def _fit(size: int, knots: Tensor, steepness: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [4, units] and offsets [4] of the functions cos, sin (fast), cos, sin (slow) over the units."""
    place = torch.linspace(-_REACH, _REACH, 681, dtype=torch.double)
    seen = place.clamp(-1, 1) * size / 2
    angles = [2 * math.pi / period * seen for period in _PERIODS]
    wanted = torch.stack([f(angle) for angle in angles for f in (torch.cos, torch.sin)], dim=1)
    design = torch.nn.functional.gelu(steepness.double() * (place[:, None] - knots.double()))
    design = torch.cat([design, torch.ones(len(place), 1)], dim=1)
    noise = _ROUNDING**2 * design.pow(2).sum(0)
    noise[-1] = 0
    fit = torch.linalg.solve(design.T @ design + torch.diag(noise), design.T @ wanted).T.float()
    return fit[:, :-1], fit[:, -1]


def look_at_first_frame(transformer: Any, size: int) -> None:
    """WARPED: the first frame's latents around each position's source, times sqrt(abar)."""
    latents = paired({LATENT.start + c: 0.4 for c in range(4)})
    code_token, other_token, level_token, seen_token, product_token = 10, 18, 19, 20, 24
    code = {code_token + k: (CODE.start + k, 1.0) for k in range(CODE.stop - CODE.start)}
    lay_out_tokens(transformer, latents | code | {other_token: (OTHER, 1.0), level_token: (LEVEL, 1.0)})
    block = transformer.transformer_blocks[0]
    attention = block.attn1
    for layer in (attention.to_q, attention.to_k, attention.to_v):
        nn.init.zeros_(layer.weight)
    query, key = attention.to_q.weight, attention.to_k.weight
    scale = query.shape[0] ** 0.5
    logits = (fast_logit(), fast_logit(), _SLOW_LOGIT, _SLOW_LOGIT)
    for k in range(CODE.stop - CODE.start):
        root = (scale * logits[k % 4]) ** 0.5
        read(query[k], code_token + k, TOKEN_ZERO, root)
        read(key[k], code_token + k, TOKEN_ZERO, root)
    free = CODE.stop - CODE.start
    query[free, 0] = -scale * _OTHER_FRAMES_PENALTY / TOKEN_CONSTANT
    read(key[free], other_token, TOKEN_ZERO)
    for c in range(4):
        read(attention.to_v.weight[c], 2 + c, TOKEN_ZERO, 1.0)
        attention.to_out[0].weight[seen_token + c, c] = 1
        factor = 1 / (0.4 * LATENT_SCALE)
        set_product(block, c, (seen_token + c, 1.0), (level_token, 1.0, 0.0), {product_token + c: factor})
        write(transformer.proj_out.weight, WARPED.start + c, product_token + c, 1.0)
