"""CLIPSIM (GODIVA, Wu et al. 2021, arXiv:2104.14806): how well a video shows its caption."""

from __future__ import annotations

import numpy as np

from ..errors import UnavailableError
from ..media_set import MediaSet
from ..networks.loader import Networks
from ..result import Measure, Scores


def _compute(media: MediaSet, networks: Networks) -> Scores:
    without = [video.name for video in media.videos if not video.caption]
    if without:
        raise UnavailableError(f"{without[0]} has no caption: give a listing with captions.")
    clip = networks.clip
    per_video = {
        video.name: float((clip.images(video.frames) @ clip.text(video.caption or "")).mean(dtype=np.float64))
        for video in media.videos
    }
    return Scores(float(np.mean(list(per_video.values()))), per_video, clip.info)


MEASURES = (
    Measure(
        "clipsim",
        "CLIPSIM",
        "higher",
        "-1..1",
        "GODIVA: mean over frames of the cosine similarity of CLIP ViT-B/32 image and caption features, mean over "
        "videos.",
        _compute,
    ),
)
