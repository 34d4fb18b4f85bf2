"""How far things move (dynamic degree), and how evenly (motion smoothness): VBench's rules, and the same on DIS flow.

VBench: Huang et al. 2023, arXiv:2311.17982.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ....runtime.media.read_video import Frames, Video
from ..networks.flow import DisFlow, RaftFlow

TOP = 0.05
FPS = 8


def motion_smoothness(frames: Frames, between: Callable[[Frames, Frames], Frames]) -> float:
    """(255 - mean absolute difference of the odd frames to those interpolated from their even neighbours) / 255.

    Args:
        frames: uint8 [frames >= 3, h, w, 3].
        between: the middle of two frames, uint8.
    """
    even = frames[::2]
    differences = [
        np.abs(frames[2 * i + 1].astype(np.float32) - between(a, b)).mean(dtype=np.float64)
        for i, (a, b) in enumerate(itertools.pairwise(even))
    ]
    return float((255.0 - np.mean(differences)) / 255.0)


def top_magnitude(flow: NDArray[np.float32]) -> float:
    """Mean length of the 5 % largest vectors of a flow [h, w, 2], in pixels."""
    lengths = np.sort(np.hypot(flow[..., 0], flow[..., 1]).ravel())
    count = max(1, int(lengths.size * TOP))
    return float(lengths[-count:].mean(dtype=np.float64))


def moves(magnitudes: list[float], smaller_side: int) -> bool:
    """VBench's decision: enough pairs of frames move far enough.

    Args:
        magnitudes: :func:`top_magnitude` of each neighbouring pair, n - 1 of them for n frames.
        smaller_side: of the frames, in pixels: the threshold is 6 pixels at 256.
    """
    threshold = 6.0 * smaller_side / 256.0
    needed = round(4 * (len(magnitudes) + 1) / 16.0)
    return sum(magnitude > threshold for magnitude in magnitudes) >= needed


def at_8_fps(video: Video) -> Frames:
    """Every round(fps / 8)-th frame, as VBench samples; never fewer than two."""
    interval = max(1, round(video.fps / FPS))
    sampled = video.frames[::interval]
    return sampled if len(sampled) > 1 else video.frames


def magnitudes(frames: Frames, network: DisFlow | RaftFlow) -> list[float]:
    """:func:`top_magnitude` of each neighbouring pair."""
    return [top_magnitude(network.flow(a, b)) for a, b in itertools.pairwise(frames)]
