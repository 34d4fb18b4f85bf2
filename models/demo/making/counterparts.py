"""Consistency of generated videos beside what it must be told from: their frames shuffled, and their first frame still.

The measures are those of ``consisti2v evaluate``: subject consistency and dynamic degree as VBench (arXiv:2311.17982)
defines them, on the networks that come by package name (EfficientNet-Lite0, DIS flow).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ....benchmarks.quality.evaluation import evaluate_set
from ....benchmarks.quality.media_set import MediaSet
from ....runtime.media.read_video import PICTURES_FPS, Frames, Video

MEASURES = ("subject_consistency_lite0", "temporal_flickering", "dynamic_degree_dis", "flow_magnitude_dis")


def still(videos: Sequence[Frames]) -> list[Frames]:
    """Each video's first frame, repeated."""
    return [np.repeat(video[:1], len(video), axis=0) for video in videos]


def shuffled(videos: Sequence[Frames], seed: int) -> list[Frames]:
    """Videos of the same frames, each drawn from two videos in random order.

    Args:
        videos: uint8 [f, h, w, 3] of equal shape; number n goes together with number n + half.
    """
    rng, half = np.random.default_rng(seed), len(videos) // 2
    mixed = []
    for first, second in zip(videos[:half], videos[half : 2 * half], strict=True):
        frames = np.concatenate([first, second])[rng.permutation(2 * len(first))]
        mixed += [frames[: len(first)], frames[len(first) :]]
    return mixed


def consistency_figures(videos: Sequence[Frames], seed: int) -> dict[str, Any]:
    """Each measure of the videos, their shuffled and their still counterparts; None where a network cannot be had."""
    kinds = {"as they are": list(videos), "shuffled": shuffled(videos, seed), "still": still(videos)}
    figures: dict[str, Any] = {}
    for kind, clips in kinds.items():
        named = [Video(f"{number:03d}", clip, PICTURES_FPS) for number, clip in enumerate(clips)]
        results = evaluate_set(MediaSet(named), names=MEASURES)
        figures[kind] = {
            result.measure.name: round(result.scores.value, 5) if result.scores else None for result in results
        }
    return figures
