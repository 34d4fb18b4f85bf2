"""Sample sheets: rows of pictures in one PNG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor


def write_sheet(path: Path, rows: list[Tensor]) -> None:
    """Write rows of frames under each other.

    Args:
        path: of the PNG.
        rows: each float [n, 3, h, w] in [-1, 1], equal sizes.
    """
    strips = [np.concatenate(list(to_uint8(row)), axis=1) for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(strips)).save(path)


def to_uint8(frames: Tensor) -> np.ndarray:
    """float [n, 3, h, w] in [-1, 1] -> uint8 [n, h, w, 3]."""
    scaled = (frames.detach().float().cpu().clamp(-1, 1) + 1) * 127.5
    return scaled.round().byte().permute(0, 2, 3, 1).numpy()
