"""Temporal self-attention with ConsistI2V's first-frame window, from projections that are not rotated yet.

ConsistI2V, https://arxiv.org/abs/2402.04324; rotary positions, https://arxiv.org/abs/2104.09864.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float32]


def rotation_table(frames: int, channels: int) -> FloatArray:
    """Cosine and sine of each frame's rotary angles: frame * 10000^(-2i / (channels / 2)), i < channels / 4.

    Angles are float32 products of float32 frequencies, as published.

    Returns:
        float32 [frames, channels / 4, 2].

    Raises:
        ValueError: a number of channels that is no multiple of 4.
    """
    if channels % 4:
        raise ValueError(f"Rotary positions need a multiple of 4 channels, not {channels}.")
    exponent = np.arange(0, channels // 2, 2, dtype=np.float32) / np.float32(channels // 2)
    frequencies = np.float32(1) / np.float32(10000) ** exponent
    angles = np.arange(frames, dtype=np.float32)[:, None] * frequencies
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def rotate(tokens: FloatArray, rotation: FloatArray) -> FloatArray:
    """Turn the first half of the JOINED channels, in adjacent pairs (2i, 2i+1); the rest stays.

    So the first half of the heads is rotated, each with its own band of frequencies, and the other half is not.

    Args:
        tokens: float32 [clips, frames, positions, channels].
        rotation: float32 [frames, channels / 4, 2], see :func:`rotation_table`.

    Returns:
        float32, a copy of the tokens' shape.
    """
    turned = tokens.copy()
    half = tokens.shape[-1] // 2
    even, odd = tokens[..., 0:half:2], tokens[..., 1:half:2]
    cos, sin = rotation[:, None, :, 0], rotation[:, None, :, 1]
    turned[..., 0:half:2] = even * cos - odd * sin
    turned[..., 1:half:2] = odd * cos + even * sin
    return turned


def window_positions(height: int, width: int) -> npt.NDArray[np.int64]:
    """Flat indices of each position's 3x3 neighbours, no centre, row-major, edges replicated: int64 [8, h*w]."""
    rows, columns = np.divmod(np.arange(height * width), max(width, 1))
    offsets = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
    return np.stack(
        [np.clip(rows + dy, 0, height - 1) * width + np.clip(columns + dx, 0, width - 1) for dy, dx in offsets]
    )


def temporal_window_attention(
    query: npt.NDArray[Any],
    key: npt.NDArray[Any],
    value: npt.NDArray[Any],
    heads: int,
    height: int,
    width: int,
    rotation: FloatArray | None,
    window: bool = True,
) -> FloatArray:
    """Every position attends to its own frames and, with the window, to frame 0's 8 neighbours of that position.

    16 queries and 24 keys in the shipped model. The neighbours stand at position 0 in time, which turns nothing. Scores
    are scaled by 1 / sqrt(channels / heads). The projections of a neighbour are frame 0's own, taken, not made anew.

    Args:
        query, key, value: float [clips, frames, height * width, channels], projected, heads joined, not rotated.
        heads: divides the channels.
        height, width: of the latents at this level.
        rotation: from :func:`rotation_table`; None where positions are not rotary.
        window: whether frame 0's neighbours are keys too.

    Returns:
        float32 [clips, frames, height * width, channels], computed in float32.

    Raises:
        ValueError: shapes that differ, or heads that do not divide the channels.
    """
    clips, _, positions, channels = query.shape
    if key.shape != query.shape or value.shape != query.shape or positions != height * width:
        raise ValueError(
            f"Query {query.shape}, key {key.shape} and value {value.shape} do not fit {height}×{width} positions: "
            f"give all three as (clips, frames, {height * width}, channels)."
        )
    if channels % heads:
        raise ValueError(f"{channels} channels do not split into {heads} heads: give a divisor.")
    q, k, v = (array.astype(np.float32) for array in (query, key, value))
    if rotation is not None:
        q, k = rotate(q, rotation), rotate(k, rotation)
    if window:
        neighbours = window_positions(height, width)
        k, v = (np.concatenate([x, x[:, 0][:, neighbours]], axis=1) for x in (k, v))
    # [clips, frames or keys, positions, channels] -> [clips, positions, heads, frames or keys, channels / heads]
    q, k, v = (x.reshape(clips, -1, positions, heads, channels // heads).transpose(0, 2, 3, 1, 4) for x in (q, k, v))
    scores = np.matmul(q * np.float32((channels // heads) ** -0.5), k.swapaxes(-1, -2))
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    out = np.matmul(weights / weights.sum(axis=-1, keepdims=True), v)
    return np.ascontiguousarray(out.transpose(0, 3, 1, 2, 4)).reshape(query.shape)
