"""What temporal attention with ConsistI2V's first-frame window reads beside its tokens, as tables.

ConsistI2V, https://arxiv.org/abs/2402.04324; rotary positions, https://arxiv.org/abs/2104.09864.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import FloatArray


def rotation_table(frames: int, channels: int) -> FloatArray:
    """Cosine and sine of each frame's rotary angles: frame * 10000^(-2i / (channels / 2)), i < channels / 4.

    Angles are float32 products of float32 frequencies, as published. float32 [frames, channels / 4, 2].
    """
    exponent = np.arange(0, channels // 2, 2, dtype=np.float32) / np.float32(channels // 2)
    frequencies = np.float32(1) / np.float32(10000) ** exponent
    angles = np.arange(frames, dtype=np.float32)[:, None] * frequencies
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def window_positions(height: int, width: int) -> NDArray[np.int64]:
    """Flat indices of each position's 3x3 neighbours, no centre, row-major, edges replicated: int64 [8, h*w]."""
    rows, columns = np.divmod(np.arange(height * width), max(width, 1))
    offsets = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
    return np.stack(
        [np.clip(rows + dy, 0, height - 1) * width + np.clip(columns + dx, 0, width - 1) for dy, dx in offsets]
    )
