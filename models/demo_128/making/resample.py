"""The first frame seen from there: attention fetches blocks, the feed-forward resamples them; then the noise."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .layer import CODE, FRAME_LOGIT, HEADS, LATENT_SCALE, REACH, TRUNK, WIDTH, Layer, plain
from .levels import gain_and_pull
from .norms import Run, inputs_of
from .vae import CHANNELS, CHROMA, LUMA

_KNOTS = torch.linspace(-1.2, 1.2, 20)
_STEEP = 12.0


def set_pass(transformer: Any, axis: int, run: Run, target: Tensor, weight: Tensor) -> None:
    """Resample blocks along an axis: WARPED from the first frame's latents (x), then from itself (y).

    Args:
        axis: 0 along rows, 1 along columns.
        target, weight: [clips x frames, channels, h, w], latents that this pass should give, and how much they count.
    """
    along, across = "xy"[axis], "yx"[axis]
    view = [TRUNK["view", k] for k in range(5)]
    # How the source changes along and across the block.
    rates = ([{view[0]: 1.0, view[1]: 1.0}, {view[2]: 1.0}], [{view[0]: 1.0, view[3]: 1.0}, {view[4]: -1.0}])[axis]
    held = {
        "content": plain("latent" if axis == 0 else "warped"),
        "key": plain(f"key_{along}") + plain(f"key_{across}"),
        "query": plain(f"query_{along}"),
        "other": plain("other"),
        "place": [plain("place")[axis]],
        "shift": [plain("shift")[axis]],
        "rate": rates,
    }
    layer = Layer(transformer, run, held, fetched=HEADS * CHANNELS, where=1, own=1)
    attention = layer.empty(layer.block.attn1)
    size = WIDTH // attention.heads
    along_strengths = [strength for _, strength, _ in CODE for _ in (0, 1)]
    strengths = along_strengths + [strength for _, _, strength in CODE for _ in (0, 1)]
    for head in range(HEADS + 1):
        rows = head * size
        q, k, v = (linear.weight[rows : rows + size] for linear in (attention.to_q, attention.to_k, attention.to_v))
        for i in range(8):
            root = (strengths[i] * size**0.5) ** 0.5
            layer.read(q[i], {("query", 4 * head + i) if i < 4 and head < HEADS else ("key", i): root})
            layer.read(k[i], {("key", i): root})
        # Along x the first frame is looked at, along y the frame itself.
        layer.constant(q[8], size**0.5 * FRAME_LOGIT * (-1 if axis == 0 else 1))
        layer.read(k[8], {("other", 0): 1.0})
        for c in range(CHANNELS if head < HEADS else 0):
            layer.read(v[c], {("content", c): 1.0})
            attention.to_out[0].weight[layer.at["fetched", head * CHANNELS + c], rows + c] = 1
        if head in (1, HEADS):
            # The place of the fetched block, and the block's own: where nothing moves their difference is exactly 0.
            layer.read(v[CHANNELS], {("place", 0): 1.0})
            attention.to_out[0].weight[layer.at["where" if head == 1 else "own", 0], rows + CHANNELS] = 1
    layer.attended()
    seen = torch.cat([x.flatten(0, 1) for x in inputs_of(layer.block.ff, run)])
    seen = seen.flatten(0, 1) - seen.flatten(0, 1)[:, layer.at["zero"], None]
    wanted = LATENT_SCALE * target.permute(0, 2, 3, 1).flatten(0, 2)
    weights = weight.permute(0, 2, 3, 1).flatten(0, 2)
    for c in range(CHANNELS):
        # The first of the picture's samples in a block, and their number along a side.
        side = LUMA if c < LUMA**2 else CHROMA
        first = 0 if side == LUMA else LUMA**2 + (c - LUMA**2) // CHROMA**2 * CHROMA**2
        row, column = divmod(c - first, side)
        mine, other = (column, row) if axis == 0 else (row, column)
        line = [first + (other * side + k if axis == 0 else k * side + other) for k in range(side)]
        inputs = [("fetched", head * CHANNELS + k) for head in range(HEADS) for k in line]
        place = {("shift", 0): _STEEP * REACH, ("own", 0): _STEEP * REACH, ("where", 0): -_STEEP * REACH}
        for k, position in ((0, mine), (1, other)):
            place["rate", k] = _STEEP * ((position + 0.5) / side - 0.5)
        shift = torch.stack([factor * seen[:, layer.at[name]] for name, factor in place.items()]).sum(0)
        values = seen[:, [layer.at[name] for name in inputs]]
        fit, rest = fitted(values, shift, wanted[:, c], weights[:, c], HEADS // 2 * side + mine)
        for knot, row_fit in zip(_KNOTS.tolist(), fit, strict=True):
            layer.unit(dict(zip(inputs, row_fit.tolist(), strict=True)), place, -_STEEP * knot, ("content", c), 1.0)
        # Content is replaced; what the trunk has of it already is taken away with it.
        held_already = {("content", c): -(1.0 if axis == 0 else 2.0) / 8}
        layer.unit(dict(zip(inputs, rest.tolist(), strict=True)) | held_already, {}, 8.0, ("content", c), 1.0)
        layer.write(TRUNK["warped", c], "content", c)


def fitted(values: Tensor, shift: Tensor, wanted: Tensor, weight: Tensor, unmoved: int) -> tuple[Tensor, Tensor]:
    """Resample fetched samples: values @ fit[k] x gelu(shift - STEEP x knot k), summed up, and values @ rest x gelu(8).

    Fitted is the change from a block that did not move: where nothing moves its sample comes back as it is.

    Args:
        values: float [n, k], the samples.
        shift: [n], how far to move, in STEEP-ths of a block.
        wanted, weight: [n], what should come out, and how much that counts.
        unmoved: which sample it is without a shift.

    Returns:
        fit [knots, k] and rest [k].
    """
    at_rest = F.gelu(-_STEEP * _KNOTS)
    gates = F.gelu(shift[:, None] - _STEEP * _KNOTS) - at_rest
    design = (gates[:, :, None] * values[:, None, :]).flatten(1)
    fit = _least_squares(design, wanted - values[:, unmoved], weight).view(len(_KNOTS), -1)
    rest = -(at_rest @ fit)
    rest[unmoved] += 1
    return fit, rest / 8


def _least_squares(design: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
    """Weighted fit with a small ridge: [n, k], [n], [n] -> [k]."""
    size = design.shape[1]
    gram, right = torch.zeros(size, size, dtype=torch.double), torch.zeros(size, dtype=torch.double)
    for rows, y, w in zip(design.split(20000), wanted.split(20000), weight.split(20000), strict=True):
        gram += ((rows * w[:, None]).T @ rows).double()
        right += ((rows * w[:, None]).T @ y).double()
    ridge = 1e-5 * gram.diagonal().mean()
    return torch.linalg.solve(gram + ridge * torch.eye(size, dtype=torch.double), right).float()


def set_noise(transformer: Any, run: Run) -> None:
    """LATENT becomes the predicted noise, gain (x - sqrt(abar) WARPED); MIRROR its negative."""
    names = ("latent", "warped", "gain", "pull")
    layer = Layer(transformer, run, {name: plain(name) for name in names}, out=CHANNELS)
    layer.attended()
    gain, pull = gain_and_pull().amax(0).tolist()
    for c in range(CHANNELS):
        layer.product(("latent", c), {("gain", 0): gain - 1}, ("out", c), 1.0)
        layer.product(("warped", c), {("pull", 0): pull}, ("out", c), -1.0)
        for name, sign in (("latent", 1.0), ("mirror", -1.0)):
            layer.write(TRUNK[name, c], "out", c, sign)
