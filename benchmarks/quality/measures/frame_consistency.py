"""Subject and background consistency (VBench, arXiv:2311.17982), and the same formula on EfficientNet-Lite0."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ....runtime.media.read_video import Frames
from ..media_set import MediaSet
from ..networks.loader import Networks
from ..result import Measure, NetworkInfo, Scores
from .temporal_flickering import require_two_frames


def frame_consistency(features: NDArray[np.float32]) -> float:
    """Mean over frames t > 0 of (max(0, f_t . f_{t-1}) + max(0, f_t . f_0)) / 2.

    Args:
        features: of unit length, [frames >= 2, d].
    """
    values = features.astype(np.float64)
    previous = np.maximum(0.0, (values[1:] * values[:-1]).sum(axis=1))
    first = np.maximum(0.0, values[1:] @ values[0])
    return float(((previous + first) / 2).mean())


def consistency_of_set(
    media: MediaSet, images: Callable[[Frames], NDArray[np.float32]], network: NetworkInfo
) -> Scores:
    """Each video's consistency; the set's is VBench's, the mean over all compared frames."""
    per_video, compared = {}, []
    for video in media.videos:
        per_video[video.name] = frame_consistency(images(video.frames))
        compared.append(len(video.frames) - 1)
    return Scores(float(np.average(list(per_video.values()), weights=compared)), per_video, network)


def _subject(media: MediaSet, networks: Networks) -> Scores:
    require_two_frames(media)
    return consistency_of_set(media, networks.dino.images, networks.dino.info)


def _background(media: MediaSet, networks: Networks) -> Scores:
    require_two_frames(media)
    return consistency_of_set(media, partial(networks.clip.images, as_vbench=True), networks.clip.info)


def _lite0(media: MediaSet, networks: Networks) -> Scores:
    require_two_frames(media)
    return consistency_of_set(media, networks.lite0.images, networks.lite0.info)


_FORMULA = "mean of the cosine similarities of each frame to the one before and to the first, negative ones as 0"

MEASURES = (
    Measure(
        "subject_consistency",
        "subject consistency",
        "higher",
        "0..1",
        f"VBench: {_FORMULA}, on DINO ViT-B/16 features.",
        _subject,
        best_when_frozen=True,
    ),
    Measure(
        "background_consistency",
        "background consistency",
        "higher",
        "0..1",
        f"VBench: {_FORMULA}, on CLIP ViT-B/32 features.",
        _background,
        best_when_frozen=True,
    ),
    Measure(
        "subject_consistency_lite0",
        "subject consistency (Lite0)",
        "higher",
        "0..1",
        f"Our own, not VBench's number: {_FORMULA}, on EfficientNet-Lite0 features.",
        _lite0,
        best_when_frozen=True,
    ),
)
