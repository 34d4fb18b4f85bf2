"""Motion smoothness (VBench, arXiv:2311.17982) by AMT-S, and the same formula by flow warping."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from ....runtime.media.read_video import Frames
from ..errors import UnavailableError
from ..media_set import MediaSet
from ..networks.dis_flow import DisFlow
from ..networks.loader import Networks
from ..result import Measure, NetworkInfo, Scores

BetweenFunction = Callable[[Frames, Frames], Frames]


def motion_smoothness(frames: Frames, between: BetweenFunction) -> float:
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


def dis_between(dis: DisFlow, first: Frames, second: Frames) -> Frames:
    """The middle of two frames: each moved half way along the flow to the other, and averaged.

    The flow at the middle is taken for that at the end frame, which holds where motion varies slowly.
    """
    forward, backward = dis.flow(first, second), dis.flow(second, first)
    half = np.float32(0.5)
    middle = np.mean([dis.warp(first, -half * forward), dis.warp(second, -half * backward)], axis=0)
    return np.rint(middle).clip(0, 255).astype(np.uint8)


def _scores(media: MediaSet, between: BetweenFunction, network: NetworkInfo, dis: DisFlow | None = None) -> Scores:
    short = [video.name for video in media.videos if len(video.frames) < 3]
    if short:
        raise UnavailableError(f"{short[0]} has fewer than three frames: none lies between two others.")
    per_video = {
        video.name: motion_smoothness(dis.scale(video.frames) if dis else video.frames, between)
        for video in media.videos
    }
    return Scores(float(np.mean(list(per_video.values()))), per_video, network)


def _amt(media: MediaSet, networks: Networks) -> Scores:
    return _scores(media, networks.amt.between, networks.amt.info)


def _dis(media: MediaSet, networks: Networks) -> Scores:
    dis = networks.dis
    return _scores(media, lambda first, second: dis_between(dis, first, second), dis.info, dis)


_FORMULA = "(255 - mean absolute difference of each odd frame to the one interpolated from its neighbours) / 255"

MEASURES = (
    Measure(
        "motion_smoothness",
        "motion smoothness",
        "higher",
        "0..1",
        f"VBench: {_FORMULA}. Interpolation by AMT-S.",
        _amt,
        best_when_frozen=True,
    ),
    Measure(
        "motion_smoothness_dis",
        "motion smoothness (DIS)",
        "higher",
        "0..1",
        f"Our own, not VBench's number: {_FORMULA}. Interpolation by DIS flow, at a smaller side of 256.",
        _dis,
        best_when_frozen=True,
    ),
)
