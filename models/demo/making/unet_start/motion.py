"""Camera motion: the text's camera code times the frame's number and the stride, and where each position comes from."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..moves import PAN_SPEED, STRIDES, TURN_SPEED, ZOOM_SPEED
from ..text_training import BEGIN_CHANNEL, END_CHANNEL
from .channels import (
    GATE_START,
    MOTION,
    PLACE,
    SOURCE,
    STRIDE,
    TIME,
    TOKEN_CONSTANT,
    lay_out_tokens,
    paired,
    set_product,
    write,
)

_FLAG_LOGIT = 8.0
"""By which the text's begin and end tokens stand out from the words between them."""
_PADDING = 70.0
"""About as many tokens carry the end's flag."""
_LEAST_SHARE, _SHARE_RANGE = 0.04, 0.6
"""Of the attention that goes to the end's tokens: in the first frame, and how much more in the last."""
# Larger ridges make smaller, rounder logits, which half precision holds better.
_RIDGE = 1e-4


def set_motion(transformer: Any, frames: int) -> None:
    """TIME: the frame's number over that of the last; MOTION: camera code x TIME x stride / 5."""
    lay_out_tokens(transformer, {2: (STRIDE, 1.0)})
    block = transformer.transformer_blocks[0]
    attention = block.attn2
    half = attention.to_q.weight.shape[0] // 2  # head 0 is turned by the rotary positions, head 1 is not
    for layer in (attention.to_q, attention.to_k, attention.to_v):
        nn.init.zeros_(layer.weight)
    frequencies = torch.as_tensor(attention.rotary_emb.freqs).double()
    used = torch.nonzero(frequencies < 0.4).flatten()
    fit = _begin_logits(frequencies[used], frames)
    scale = half**0.5
    for k, pair in enumerate(used.tolist()):
        attention.to_q.weight[2 * pair, 0] = scale / TOKEN_CONSTANT
        attention.to_k.weight[2 * pair, BEGIN_CHANNEL] = fit[k]
        attention.to_k.weight[2 * pair + 1, BEGIN_CHANNEL] = fit[len(used) + k]
    # Tokens within the text stand aside: begin and end tokens both get a bonus, by the slowest pair.
    slow = 2 * (len(frequencies) - 1)
    for head in (slow, half):
        attention.to_q.weight[head, 0] = scale / TOKEN_CONSTANT
        attention.to_k.weight[head, END_CHANNEL] = _FLAG_LOGIT
    attention.to_k.weight[slow, BEGIN_CHANNEL] += _FLAG_LOGIT
    out = attention.to_out[0].weight
    # (head 0 - 0.04 head 1) / 0.6: 0 in frame 0, 1 in the last; the negative too, so that the sum of channels stays 0.
    for k, channel in enumerate((0, 1, 2, 3, END_CHANNEL)):
        for head, factor in ((0, 1 / _SHARE_RANGE), (half, -_LEAST_SHARE / _SHARE_RANGE)):
            attention.to_v.weight[head + k, channel] = 1
            out[3 + k, head + k], out[8 + k, head + k] = factor, -factor
    opened = 1 / (1 - GATE_START)
    for k in range(4):
        set_product(block, k, (3 + k, 1.0), (2, 0.4, 0.6), {13 + k: 1.0, 17 + k: -1.0})
        write(transformer.proj_out.weight, MOTION.start + k, 13 + k, opened)
    write(transformer.proj_out.weight, TIME, 7, opened)


def _begin_logits(frequencies: Tensor, frames: int) -> Tensor:
    """The begin token's logit over the frames, as a sum of cosines and sines of the rotary angles: float
    [2 x frequencies], so that the end's share of the attention grows evenly.
    """
    number = torch.arange(frames, dtype=torch.double)
    share = _LEAST_SHARE + _SHARE_RANGE * number / (frames - 1)
    wanted = math.log(_PADDING) - torch.log(share / (1 - share))
    angles = number[:, None] * frequencies
    design = torch.cat([angles.cos(), angles.sin()], dim=1)
    # An even error of the share, and so of the camera's place, is wanted: errors of the logit count by its slope.
    importance = (share * (1 - share))[:, None]
    weighted = design * importance
    ridge = _RIDGE * float(importance.mean()) ** 2 * torch.eye(design.shape[1], dtype=torch.double)
    return torch.linalg.solve(weighted.T @ weighted + ridge, weighted.T @ (wanted * importance[:, 0])).float()


def set_source(transformer: Any) -> None:
    """SOURCE: where each position's content comes from in the first frame, in half widths right and down."""
    motion = {MOTION.start + k: 1.0 for k in range(4)}
    layout = paired(motion | {PLACE.start: 1.0, PLACE.start + 1: 1.0})
    lay_out_tokens(transformer, layout)
    block = transformer.transformer_blocks[0]
    steps = max(STRIDES) * (transformer.n_frames - 1)
    pan, zoom, turn = 2 * PAN_SPEED * steps, -ZOOM_SPEED * steps, float(TURN_SPEED) * steps
    out = transformer.proj_out.weight
    growth, clockwise, right, down, free = 4, 5, 6, 7, 14
    # (code token, place token, axis, rate): zoom moves along the place, turning across it.
    terms = (
        (growth, right, 0, zoom),
        (growth, down, 1, zoom),
        (clockwise, down, 0, turn),
        (clockwise, right, 1, -turn),
    )
    for unit, (code, place, axis, rate) in enumerate(terms):
        set_product(block, unit, (code, 1.0), (place, 1.0, 0.0), {free + axis: rate})
    for axis, place in enumerate((right, down)):
        for token, factor in ((free + axis, 1.0), (place, 1.0), (2 + axis, pan)):
            write(out, SOURCE.start + axis, token, factor)
