"""Temporal self-attention with ConsistI2V's first-frame window, from projections that are not rotated yet."""

from __future__ import annotations

import numpy as np

from consisti2v_rt.kernels.temporal_window import window_positions


def rotate(tokens: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Turn the first half of the JOINED channels, in adjacent pairs (2i, 2i+1); the rest stays.

    So the first half of the heads is rotated, each with its own band of frequencies, and the other half is not.
    """
    turned = tokens.copy()
    half = tokens.shape[-1] // 2
    even, odd = tokens[..., 0:half:2], tokens[..., 1:half:2]
    cos, sin = rotation[:, None, :, 0], rotation[:, None, :, 1]
    turned[..., 0:half:2] = even * cos - odd * sin
    turned[..., 1:half:2] = odd * cos + even * sin
    return turned


def temporal_window_attention(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    heads: int,
    height: int,
    width: int,
    rotation: np.ndarray | None,
    window: bool = True,
) -> np.ndarray:
    """Every position attends to its own frames and, with the window, to frame 0's 8 neighbours of that position.

    The neighbours stand at position 0 in time, which turns nothing. Scores are scaled by 1 / sqrt(channels / heads).
    All arrays are [clips, frames, height * width, channels]; `rotation` is a ``rotation_table``. Computed in float32.
    """
    clips, _, positions, channels = query.shape
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
