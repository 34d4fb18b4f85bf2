"""What the frames show: their caption (CLIPSIM), and the same thing from frame to frame (flickering, consistency).

Flickering and consistency are VBench's (Huang et al. 2023, arXiv:2311.17982).
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....runtime.media.read_video import Frames, Video
from ..measure import Scores, UnavailableError, mean_over_videos
from ..media_set import MediaSet
from ..networks import Networks


def temporal_flickering(frames: Frames) -> float:
    """(255 - mean absolute difference of neighbouring frames) / 255; 1: nothing changes.

    Args:
        frames: uint8 [frames >= 2, h, w, 3].
    """
    values = frames.astype(np.float32)
    differences = [np.abs(b - a).mean(dtype=np.float64) for a, b in itertools.pairwise(values)]
    return float((255.0 - np.mean(differences)) / 255.0)


def frame_consistency(features: NDArray[np.float32]) -> float:
    """Mean over frames t > 0 of (max(0, f_t . f_{t-1}) + max(0, f_t . f_0)) / 2.

    Args:
        features: of unit length, [frames >= 2, d].
    """
    values = features.astype(np.float64)
    previous = np.maximum(0.0, (values[1:] * values[:-1]).sum(axis=1))
    first = np.maximum(0.0, values[1:] @ values[0])
    return float(((previous + first) / 2).mean())


def clipsim(media: MediaSet, networks: Networks) -> Scores:
    """Mean cosine of CLIP's features of the frames and of the caption (GODIVA, Wu et al. 2021, arXiv:2104.14806).

    Raises:
        UnavailableError: a video has no caption.
    """
    for video in media.videos:
        if not video.caption:
            raise UnavailableError(f"{video.name} has no caption: give a listing with captions.")

    def score(video: Video, clip: Any) -> float:
        return float((clip.images(video.frames) @ clip.text(video.caption or "")).mean(dtype=np.float64))

    return mean_over_videos(score, "clip")(media, networks)
