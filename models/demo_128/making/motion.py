"""Where the content of each block comes from: camera code, time and stride become a displacement, and that a code."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .layer import BEYOND, CODE, FLAG_LOGIT, FRAMES, HEADS, PAN, REACH, TRUNK, TURN, WIDTH, ZOOM, At, Layer, plain
from .norms import Run
from .text import BEGIN, END


def set_motion(transformer: Any, run: Run) -> None:
    """TIME: the frame's number over that of the last; MOTION: camera code x TIME x stride / 5."""
    layer = Layer(transformer, run, {"stride": plain("stride")}, share=5, motion=4)
    attention = layer.empty(layer.block.attn2)
    half = WIDTH // 2  # head 0 is turned by the rotary positions, head 1 is not
    frequencies = torch.as_tensor(attention.rotary_emb.freqs).double()
    slow = len(frequencies) - 1
    least, span = 0.04, 0.6
    number = torch.arange(FRAMES, dtype=torch.double)
    share = least + span * number / (FRAMES - 1)
    # The begin token's logit against the end's, as a sum of cosines and sines of the rotary angles. An even error of
    # the share is wanted: errors of the logit count by its slope.
    angles = number[:, None] * frequencies[:slow]
    slope = (share * (1 - share))[:, None]
    design = torch.cat([angles.cos(), angles.sin()], 1) * slope
    wanted = (torch.log((1 - share) / share)[:, None] * slope)[:, 0]
    gram = design.T @ design + 1e-7 * torch.eye(design.shape[1], dtype=torch.double)
    fit = torch.linalg.solve(gram, design.T @ wanted)
    scale = half**0.5
    for row in range(0, half + 1, 2):
        layer.constant(attention.to_q.weight[row], scale)
    attention.to_k.weight[0 : 2 * slow : 2, BEGIN] = fit[:slow].float()
    attention.to_k.weight[1 : 2 * slow : 2, BEGIN] = fit[slow:].float()
    # All other tokens stand aside: begin and end both get a bonus, by the slowest pair.
    attention.to_k.weight[[2 * slow, half], END] = FLAG_LOGIT
    attention.to_k.weight[2 * slow, BEGIN] = FLAG_LOGIT
    # Head 1 sees the end alone: (head 0 - 0.04 head 1) / 0.6 is 0 in frame 0 and 1 in the last.
    for k, channel in enumerate((0, 1, 2, 3, END)):
        for head, factor in ((0, 1 / span), (half, -least / span)):
            attention.to_v.weight[head + k, channel] = 1
            attention.to_out[0].weight[layer.at["share", k], head + k] = factor
    layer.attended()
    for k in range(4):
        layer.product(("share", k), {("stride", 0): 1.0}, ("motion", k), 1.0)
        layer.write(TRUNK["motion", k], "motion", k)
    layer.write(TRUNK["time"], "share", 4)


def set_view(transformer: Any, run: Run) -> None:
    """VIEW: size - 1; 1 / cos - 1, tan, cos - 1 and sin of the turn. OTHER: 0 in the first frame, 1 in the others."""
    layer = Layer(transformer, run, {"motion": plain("motion")[2:], "time": plain("time")}, view=5, other=1)
    layer.attended()
    layer.curves(("motion", 0), 1.1, 0.1, {("view", 0): lambda m: torch.exp(-ZOOM * m) - 1})
    turns: dict[At, Any] = {
        ("view", 1): lambda m: 1 / torch.cos(TURN * m) - 1,
        ("view", 2): lambda m: torch.tan(TURN * m),
        ("view", 3): lambda m: torch.cos(TURN * m) - 1,
        ("view", 4): lambda m: torch.sin(TURN * m),
    }
    layer.curves(("motion", 1), 1.1, 0.1, turns)
    for sign, offset in ((1.0, -0.2), (-1.0, -3.2)):
        layer.unit(1.0, {("time", 0): 50.0}, offset, ("other", 0), sign / 3)
    for k in range(5):
        layer.write(TRUNK["view", k], "view", k)
    layer.write(TRUNK["other"], "other", 0)


def set_shift(transformer: Any, run: Run) -> None:
    """SHIFT: along x how far away a block's content is in the first frame's same row, along y in the result of that.

    Small numbers lose little in half precision, and a difference from the place would lose all of what is left.
    """
    held = {name: plain(name) for name in ("place", "view")} | {"pan": plain("motion")[:2]}
    layer = Layer(transformer, run, held, shift=2)
    layer.attended()
    terms = ((0, 0, 0, 1.0), (1, 0, 0, 1.0), (2, 1, 0, 1.0), (0, 1, 1, 1.0), (3, 1, 1, 1.0), (4, 0, 1, -1.0))
    for view, place, axis, sign in terms:
        layer.product(("place", place), {("view", view): 1.0}, ("shift", axis), sign)
    for axis in (0, 1):
        layer.write(TRUNK["shift", axis], "shift", axis)
        layer.write(TRUNK["shift", axis], "pan", axis, PAN)


def set_code(transformer: Any, run: Run) -> None:
    """KEY: the place as cosines and sines. QUERY: the same of the source and of one block before and after it, within
    the frame. SHIFT is drawn back to what lies little outside.
    """
    source = [{TRUNK["place", axis]: 1.0, TRUNK["shift", axis]: 1.0} for axis in (0, 1)]
    layer = Layer(transformer, run, {"place": plain("place"), "source": source}, key=8, query=24, back=2)
    layer.attended()
    edge = REACH - 0.5

    def code(offset: float, sine: bool, period: float) -> Callable[[Tensor], Tensor]:
        def function(x: Tensor) -> Tensor:
            angle = 2 * math.pi / period * (REACH * x + offset).clamp(-edge, edge)
            return angle.sin() if sine else angle.cos()

        return function

    kinds = [(sine, period) for period, _, _ in CODE for sine in (False, True)]
    reach = (edge + BEYOND) / REACH
    for axis in (0, 1):
        keys = {("key", 4 * axis + k): code(0.0, *kind) for k, kind in enumerate(kinds)}
        layer.curves(("place", axis), 1.0, 0.5 / REACH, keys)
        offsets = [(head - 1.0, *kind) for head in range(HEADS) for kind in kinds]
        queries = {("query", 12 * axis + k): code(*offset) for k, offset in enumerate(offsets)}
        layer.curves(("source", axis), 9.5 / REACH, 0.25 / REACH, queries)
        for sign in (1.0, -1.0):
            layer.unit(1.0, {("source", axis): sign * 64}, -64 * reach, ("back", axis), -sign / 64)
        for name, length in (("key", 4), ("query", 12)):
            for k in range(length):
                layer.write(TRUNK[f"{name}_{'xy'[axis]}", k], name, length * axis + k)
        layer.write(TRUNK["shift", axis], "back", axis)
