"""Temporal flickering (VBench, Huang et al. 2023, arXiv:2311.17982)."""

from __future__ import annotations

import itertools

import numpy as np

from ....runtime.media.read_video import Frames
from ..errors import UnavailableError
from ..media_set import MediaSet
from ..networks.loader import Networks
from ..result import Measure, Scores


def temporal_flickering(frames: Frames) -> float:
    """(255 - mean absolute difference of neighbouring frames) / 255; 1: nothing changes.

    Args:
        frames: uint8 [frames >= 2, h, w, 3].
    """
    values = frames.astype(np.float32)
    differences = [np.abs(b - a).mean(dtype=np.float64) for a, b in itertools.pairwise(values)]
    return float((255.0 - np.mean(differences)) / 255.0)


def require_two_frames(media: MediaSet) -> None:
    """Refuse a set with a picture in it.

    Raises:
        UnavailableError: a video of a single frame.
    """
    short = [video.name for video in media.videos if len(video.frames) < 2]
    if short:
        raise UnavailableError(f"{short[0]} has one frame: this measure compares neighbouring frames.")


def _compute(media: MediaSet, networks: Networks) -> Scores:
    require_two_frames(media)
    per_video = {video.name: temporal_flickering(video.frames) for video in media.videos}
    return Scores(float(np.mean(list(per_video.values()))), per_video)


MEASURES = (
    Measure(
        "temporal_flickering",
        "temporal flickering",
        "higher",
        "0..1",
        "VBench: (255 - mean absolute difference of neighbouring frames) / 255, mean over videos. VBench applies it to "
        "still scenes; motion lowers it as flicker does.",
        _compute,
        best_when_frozen=True,
    ),
)
